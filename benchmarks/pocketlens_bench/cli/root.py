"""What every command of `pocketlens-bench` shares: the command object, options, the progress bar, telling a result.

Tables and JSON go to stdout, progress to stderr."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
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


def named_bundle(named: Path | None) -> Path:
    """The bundle meant by --bundle, or the default one."""
    from pocketlens_wire.bundle import default_bundle

    return named or default_bundle()


def seconds_of(text: str, option: str) -> float:
    """Seconds of a time as 90s, 30m or 1h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise typer.BadParameter("is a time as 90s, 30m or 1h", param_hint=option)
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def check_out(out: Path | None) -> None:
    """Refuse, before minutes are spent, a file that could not be written afterwards."""
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise typer.BadParameter(f"--out {out}: not a file in an existing folder")


def tell(
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
def progress() -> Iterator[Callable[[str, int, int], None]]:
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
