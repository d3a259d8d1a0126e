"""`pocketlens-export`: checkpoint in, verified bundle out, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Turn a finished training into a bundle.\n\nExample: pocketlens-export bundle runs/sample -o mybundle",
)


Name = Annotated[
    str | None, typer.Option(help="Name shown to people; default: that of the folder made.", show_default=False)
]


@app.callback()
def main() -> None:
    """Turn a finished training into a bundle."""


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(help="Run folder of `pocketlens-train`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; it must not exist.")],
    name: Name = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="Another encoder id the cloud half shall accept; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Write ONNX graphs, manifests with hashes and ids, and golden vectors.

    Every graph is run through the device's and the cloud's own runtimes and compared with torch; classic mistakes
    (BGR, wrong slot position, missing normalisation) must stand out tenfold. If a check fails nothing is written
    and the exit code is 1."""
    with _plain_errors():
        from pocketlens_export.bundle import export_bundle

        report = export_bundle(run, out, name=name or out.resolve().name, accept=accept)
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print(report, out)
    typer.echo(f"It answers in zero-shot {'and tuned mode' if report['heads'] else 'mode: it has no heads'}")
    if not report["heads"] and any(run.glob("heads*")):
        typer.echo(f"The heads in {run} are not finished: run `pocketlens-train heads` again, then export anew")


@app.command()
def sibling(
    run: Annotated[Path, typer.Argument(help="Run folder of `pocketlens-train`.")],
    tokens: Annotated[int, typer.Option(min=1, help="Which of the run's siblings: its number of tokens.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; it must not exist.")],
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Write the device's half of another student of the run, one of `pocketlens-train sibling`.

    Its tokens mean what those of the run's bundle mean (same token space), but there are others of them, so its encoder
    id is its own. Checked like the bundle's encoder. A cloud half answers its queries once it was exported with
    `pocketlens-export bundle RUN -o DIR --accept <that encoder id>`; benchmarks take it as it is.

    Example: pocketlens-export sibling runs/sample --tokens 8 -o students/k8"""
    with _plain_errors():
        from pocketlens_export.sibling import export_sibling

        report = export_sibling(run, out, tokens=tokens, name=name or out.resolve().name)
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print(report, out)
    typer.echo(f"A cloud half answers it if exported with --accept {report['encoder']}")


@app.command()
def quantize(
    bundle: Annotated[Path, typer.Argument(help="A bundle, both halves.")],
    images: Annotated[Path, typer.Option(help="Pictures as the device will see them: a folder, a list, shards.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; it must not exist.")],
    questions: Annotated[
        Path | None,
        typer.Option(help='Composed queries of the gate: {"reference", "text", "targets"} lines, held out.'),
    ] = None,
    count: Annotated[
        int, typer.Option(min=32, help="Pictures to take ranges from; as many again to compare on.")
    ] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Add int8, half-precision and ONNX Runtime forms to a bundle, each measured.

    Recipes of static quantisation are tried from the smallest file up (scale per tensor or per channel; ranges by
    least and greatest, percentile or entropy; 64 pictures or all; the first convolutions float). The first that passes
    the gate goes in: its recall@10 on the questions may be at most 0.5 points below the original's, at 95 % confidence,
    in every mode of the bundle. If none passes, layers are left float, the most sensitive first; if that does not help
    either, the exit code is 1 and the layers to blame are listed. Without --questions each of at most 4,000 pictures
    shall find itself among them.

    Example: pocketlens-export quantize mybundle --images photos --questions questions.jsonl -o mybundle-int8"""
    with _plain_errors():
        import shutil

        from pocketlens_training.material import open_images

        from pocketlens_export.bundle import put_in_place
        from pocketlens_export.forms import NoFormPasses, grow
        from pocketlens_export.gate import composed

        source, _ = open_images(images)
        asked = None if questions is None else composed(questions)
        try:
            with put_in_place(out) as building, _bars() as on_done:
                shutil.copytree(bundle, building, dirs_exist_ok=True)
                report = grow(building, source, asked, on_done=on_done, count=count)
        except NoFormPasses as none:
            typer.echo(f"pocketlens-export: {none}", err=True)
            for layer, lost in none.layers[:20]:
                typer.echo(f"  {lost:.2e}  {layer}", err=True)
            raise typer.Exit(1) from none
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print_forms(report, out)


def _print_forms(report: dict, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    gate = report["gate"]
    table = Table(
        "form", "KB", "tokens' cosine, least", "recall@10, change", "first ten shared", "ms, 1 and 4 threads",
        title=f"Forms of {out}, by {gate['questions']:,} {gate['by']}",
    )  # fmt: skip
    for form in report["forms"]:
        worst = min(form["changes"].values(), key=lambda change: change["low"])
        table.add_row(
            form["form"], f"{form['bytes'] / 1e3:,.0f}", f"{form['near']['least']:.4f}",
            f"{worst['change']:+.2f} ({worst['low']:+.2f} to {worst['high']:+.2f})", f"{worst['overlap']:.1%}",
            " and ".join(f"{ms:.2f}" for ms in form["p50_ms"].values()),
        )  # fmt: skip
    Console().print(table)
    for name, why in report["pictures"]["unreadable"]:
        typer.echo(f"unreadable: {name}: {why}", err=True)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of work, on stderr; nothing where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def on_done(kind: str, done: int, total: int) -> None:
            if kind not in bars:
                bars[kind] = progress.add_task(kind, total=total)
            progress.update(bars[kind], completed=done)

        yield on_done


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A missing library or a refusal as one line and exit code 1."""
    from pocketlens_wire.errors import PocketlensError

    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as missing:
        typer.echo(
            f"pocketlens-export: {missing.name} is not installed here: pip install 'pocketlens[export]'", err=True
        )
        raise typer.Exit(1) from missing
    from pocketlens_export.parity import NotEqual

    try:
        yield
    except (NotEqual, PocketlensError, FileNotFoundError, FileExistsError, ValueError) as wrong:
        typer.echo(f"pocketlens-export: {wrong}", err=True)
        raise typer.Exit(1) from wrong


def _print(report: dict, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("graph", "largest difference", "allowed", "least of the mistakes", title=f"Parity of {out}")
    for check in report["parity"]:
        least = min(check["mistakes"].items(), key=lambda item: item[1])
        table.add_row(
            check["graph"],
            f"{check['difference']:.1e}",
            f"{check['tolerance']:.0e}",
            f"{least[1]:.1e} ({least[0]})",
        )
    console = Console()
    console.print(table)
    ids = {"token_space": "token space", "gallery_space": "gallery space", "encoder": "encoder"}
    console.print(", ".join(f"{title} {report[key]}" for key, title in ids.items() if key in report))
