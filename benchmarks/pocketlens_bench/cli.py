"""`pocketlens-bench`: accuracy, latency.

Owns options, help texts, progress bars, and the one boundary where errors become a line and an exit code. Tables and
JSON go to stdout, progress to stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from pocketlens_wire.errors import PocketlensError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

commands = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Measure a bundle through the parts that a user's query goes through.

    [b]Start here[/b]

    pocketlens-bench accuracy --quick

    pocketlens-bench latency""",
)

Bundle = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Bundle to measure. Default: $POCKETLENS_BUNDLE, else the sample bundle.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object with everything instead of tables.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Also write the JSON object here.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap and other draws; the sets have seeds of their own.")]


@commands.command()
def accuracy(
    which: Annotated[Literal["sample"], typer.Option("--set", help="Which held-out set.")] = "sample",
    bundle: Bundle = None,
    quick: Annotated[bool, typer.Option("--quick", help="A sixth of the set: for a look, not for a report.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the cloud's models and of drawing (default: all cores).")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """How well it finds, beside its baselines and its ceiling.

    Pictures are files; tokens come from the device's encoder and travel through the wire codec; query vectors come
    from the cloud's composer and are searched in a real gallery, exactly. The sample set holds 1,200 composed queries
    to 6,000 pictures, 5,000 captions to 5,000 pictures and 1,000 sketches to 6,000 pictures; what is wanted is always
    a combination that no training picture showed. Every figure has a 95 % interval; the JSON adds breakdowns by
    wording, number of edits and edited attribute.

    Example: pocketlens-bench accuracy --set sample --json > accuracy.json"""
    del which  # there is one set yet
    from pocketlens_bench.accuracy import measure
    from pocketlens_bench.report import print_accuracy
    from pocketlens_bench.world import FULL, QUICK

    _check_out(out)
    with _progress() as on_progress:
        result = measure(
            _bundle(bundle), sizes=QUICK if quick else FULL, seed=seed, threads=threads, on_progress=on_progress
        )
    _tell(result, as_json, out, print_accuracy)


@commands.command()
def latency(
    bundle: Bundle = None,
    rounds: Annotated[int, typer.Option(min=10, help="Rounds of each measurement.")] = 200,
    gallery: Annotated[int, typer.Option(min=100, help="Pictures in the gallery.")] = 3000,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """How long it takes and how much it sends, with one thread, in one run.

    The device's stages; the student against the large image tower, in turn; the whole way through a real server
    process on loopback; the server's start; the bytes of a request, counted on the wire. Leave the machine alone
    meanwhile: the load at the start is reported.

    Example: pocketlens-bench latency --rounds 500"""
    from pocketlens_bench.latency import measure
    from pocketlens_bench.report import print_latency

    _check_out(out)
    with _progress() as on_progress:
        result = measure(_bundle(bundle), rounds=rounds, gallery=gallery, seed=seed, on_progress=on_progress)
    _tell(result, as_json, out, print_latency)


def app(arguments: list[str] | None = None) -> NoReturn:
    """The command's entry point: runs it and leaves with its exit code.

    0 measured, 1 it went wrong and stderr says why, 2 wrong usage."""
    try:
        sys.exit(commands(arguments, prog_name="pocketlens-bench", standalone_mode=False) or 0)
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except PocketlensError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", 130)


def _fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(f"pocketlens-bench: {message}", err=True)
    sys.exit(exit_code)


def _bundle(named: Path | None) -> Path:
    from pocketlens_wire.bundle import default_bundle

    return named or default_bundle()


def _check_out(out: Path | None) -> None:
    """Refuse, before minutes are spent, a file that could not be written afterwards."""
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise typer.BadParameter(f"--out {out}: not a file in an existing folder")


def _tell(
    result: dict[str, Any], as_json: bool, out: Path | None, show: Callable[[Console, dict[str, Any]], None]
) -> None:
    text = json.dumps(result, allow_nan=False)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        show(Console(), result)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the stage at work on a terminal, a line per stage elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("load", total=None)
        now = ""

        def on_progress(stage: str, done: int, total: int) -> None:
            nonlocal now
            if stage != now:
                now = stage
                bar.reset(task, description=stage, total=total)
                if not console.is_terminal:
                    console.print(stage, markup=False, highlight=False)
            bar.update(task, completed=done, total=total)

        yield on_progress
