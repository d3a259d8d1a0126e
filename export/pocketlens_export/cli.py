"""`pocketlens-export`: checkpoint in, verified bundle out, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
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
    exact_only: Annotated[
        bool, typer.Option("--exact-only", help="Only fp32: no half precision, int8 and ONNX Runtime forms.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Write ONNX graphs, manifests with hashes and ids, and golden vectors.

    Every graph is run through the device's and the cloud's own runtimes and compared with torch; classic mistakes
    (BGR, wrong slot position, missing normalisation) must stand out tenfold. If a check fails nothing is written
    and the exit code is 1.

    Then, from the run's own pictures and questions, the further forms of `quantize`, and int8 towers for the service,
    each behind its gate; edge/parity.html shows what was measured. Where the pictures are gone, or none passes, the
    bundle is without, and says so."""
    with _plain_errors():
        from pocketlens_export.bundle import export_bundle

        with _bars() as on_done:
            report = export_bundle(
                run, out, name=name or out.resolve().name, accept=accept, exact_only=exact_only, on_done=on_done
            )
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print(report, out)
    _say_forms(report.get("forms"), out)
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
    """Add int8, half-precision and ONNX Runtime forms of the encoder, and int8 towers, to a bundle, each measured.

    Recipes of static quantisation are tried from the smallest file up (scale per tensor or per channel; ranges by
    least and greatest, percentile or entropy; 64 pictures or all; the first convolutions float). The first that passes
    the gate goes in: its recall@10 on the questions may be at most 0.5 points below the original's, at 95 % confidence,
    in every mode of the bundle. If none passes, layers are left float, the most sensitive first; if that does not help
    either, the exit code is 1 and the layers to blame are listed. An int8 form without zero points, which TensorRT
    needs, is looked for in the same way; where none passes, the bundle goes without. Without --questions each of at
    most 4,000 pictures shall find itself among them. Towers go in if they pass the same gate.
    edge/parity.html shows all of it.

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


def _say_forms(report: dict | None, out: Path) -> None:
    """What became of the further forms of a bundle."""
    if report is None:
        return
    if "no_forms" in report:
        typer.echo(
            f"No further forms: {report['no_forms']}. `pocketlens-export quantize` makes them from other pictures"
        )
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
    if report["no_int8"]:
        typer.echo(f"No int8 encoder: {report['no_int8']}")
    for form, why in report["left_out"].items():
        typer.echo(f"No {form}: {why}")
    if report["no_int8_symmetric"]:
        typer.echo(f"No int8 encoder for TensorRT: {report['no_int8_symmetric']}")
    for tower in report["towers"]:
        sizes = " to ".join(f"{size / 1e6:,.1f}" for size in tower["bytes"].values())
        said = f"{sizes} MB, {tower['said']}" if tower["said"] else "no int8 form passes the gate"
        typer.echo(f"{tower['tower'].replace('_', ' ')}: {said}")
    typer.echo(f"To look at: {out / 'edge' / 'parity.html'}")
    for name, why in report["pictures"]["unreadable"]:
        typer.echo(f"unreadable: {name}: {why}", err=True)


class _Precision(StrEnum):
    """What an engine computes in."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


@app.command()
def tensorrt(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or its device's half.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of engines; default: where the device looks for them."),
    ] = None,
    precision: Annotated[
        list[_Precision] | None,
        typer.Option(help="Which engines; repeatable. Default: all that the bundle has graphs for."),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=1024, help="Pictures an engine takes at once, from 1 up.")] = 8,
    workspace_mb: Annotated[int, typer.Option(min=16, help="Memory TensorRT may try kernels in, MB.")] = 1024,
    least: Annotated[
        float, typer.Option(min=0.9, max=1.0, help="Cosine with the CPU's tokens below which an engine is refused.")
    ] = 0.999,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build all, then run each as a device does, beside every other runtime.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Build TensorRT engines of a bundle's encoder for the GPU of this machine.

    TensorRT 10 (Jetson) and 11, from the bundle's own graphs: fp32, fp16, and for int8 the form without zero points
    that `quantize` makes. An engine runs on this model of GPU with this version of TensorRT alone, so build it on the
    device; torch is not needed. Each is compared with the same graph on the CPU over the golden pictures, and written
    only if its tokens are the same encoder's. The device takes it with `pocketlens-edge search --provider engine`.

    Exit code 0 if all engines are the same, 1 if not, or if there is no TensorRT, no GPU, no such graph.

    Example: pocketlens-export tensorrt mybundle --verify"""
    if verify and precision:
        raise typer.BadParameter("--verify builds every precision; leave --precision out")
    with _plain_errors("onnx"):
        from pocketlens_edge.engines import FORMS, default_folder
        from pocketlens_wire.manifest import read_edge

        from pocketlens_export import engines

        asked = engines.Asked(most=most, workspace=workspace_mb << 20, least=least)
        folder = out or default_folder()
        there = [form for form in FORMS if form in read_edge(bundle).graphs]
        forms = list(dict.fromkeys(engines.FORM_OF[each] for each in precision)) if precision else there
        try:
            with _bars() as on_done:
                if verify:
                    report = engines.verify(bundle, folder, asked, on_done=on_done)
                else:
                    report = engines.build(bundle, folder, forms, asked, on_done=on_done)
        except engines.NotTheSame as other:
            if not as_json:
                _print_engines([asdict(row) for row in other.rows], f"Runtimes of {bundle}")
            raise
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print_engines(report["rows"], f"{report['bundle']} with TensorRT {report['tensorrt']} on {report['gpu']}")
    for said in report.get("skipped", []):
        typer.echo(f"not compared: {said}")
    typer.echo(f"{len(report['engines'])} engines in {folder}; use them with: pocketlens-edge search --provider engine")


def _print_engines(rows: list[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "form", "runs on", "least cosine with the CPU", "from golden", "allowed", "ms, 1", "ms, most", "", title=title
    )
    for row in rows:
        table.add_row(
            row["form"], row["by"], f"{row['cosine']:.5f}", f"{row['difference']:.1e}", f"{row['tolerance']:.1e}",
            f"{row['ms']:.2f}", f"{row['ms_most']:.2f}", "same" if row["ok"] else "OTHER",
        )  # fmt: skip
    Console().print(table)


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
def _plain_errors(*needed: str) -> Iterator[None]:
    """A missing library or a refusal as one line and exit code 1. needed: libraries, else onnx and torch."""
    from importlib import import_module

    from pocketlens_wire.errors import PocketlensError

    try:
        for library in needed or ("onnx", "torch"):
            import_module(library)
    except ModuleNotFoundError as missing:
        how = " ".join(needed) or "'pocketlens[export]'"
        typer.echo(f"pocketlens-export: {missing.name} is not installed here: pip install {how}", err=True)
        raise typer.Exit(1) from missing
    try:
        yield
    except (PocketlensError, OSError, ValueError) as wrong:
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
