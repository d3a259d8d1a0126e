"""`pocketlens-bench report` and `compare`: options and help."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Json, check_out, commands

Results = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[RESULTS...]",
        help="Results files, or folders of them. Default: the checkout's benchmarks/results.",
        show_default=False,
    ),
]


@commands.command()
def report(
    results: Results = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Markdown page. Default: the checkout's docs/results.md; beside the results if they are named.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; leave with 1 if the page does not agree with the results.")
    ] = False,
) -> None:
    """Turn results into a page with tables and plots.

    Each section says how it was measured, where Pocketlens loses, what the figures do not say, and the command to
    measure it again. Pictures lie beside the page in img/, once for light pages and once for dark ones. The same
    results give the same page, so --check can hold a committed page to its results.

    Example: pocketlens-bench report accuracy.json latency.json --out results.md"""
    from pocketlens_bench.report.page import page_of, stale, write
    from pocketlens_bench.report.results import read_results

    named, page_file = _where(results, out)
    page = page_of(read_results(named), page_file)
    if check:
        said = stale(page, page_file)
        for line in said:
            typer.echo(f"pocketlens-bench: {line}", err=True)
        if said:
            typer.echo("pocketlens-bench: run `pocketlens-bench report` again", err=True)
            raise typer.Exit(1)
        return
    check_out(page_file)
    for file in write(page, page_file):
        typer.echo(file)


def _where(results: list[Path] | None, out: Path | None) -> tuple[list[Path], Path]:
    """What to read and which page to write. Raises BadParameter outside a checkout with nothing named."""
    from pocketlens_bench.checkout import checkout

    if results:
        first = results[0]
        return results, out or (first if first.is_dir() else first.parent) / "results.md"
    root = checkout()
    if root is None:
        raise typer.BadParameter("name the results files: this is not run from a checkout, which holds some")
    return [root / "benchmarks" / "results"], out or root / "docs" / "results.md"


@commands.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="Results before.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="Results after, of the same kind and set.")],
    everything: Annotated[bool, typer.Option("--all", help="Also list what is within noise, and breakdowns.")] = False,
    scatter: Annotated[
        float, typer.Option(min=0, max=100, metavar="PERCENT", help="Times that differ by less count as within noise.")
    ] = 10.0,
    fail_on_worse: Annotated[
        bool, typer.Option("--fail-on-worse", help="Leave with 1 if anything got worse beyond noise.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the paired bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """What got better, what got worse, and what is within noise.

    Where both files carry a value per query for the same queries, the difference is paired (bootstrap over queries).
    Else two intervals are held against each other, which sees only larger differences. Times are compared as ratios.
    Files of different kinds or sets are refused; different bundles, machines, seeds or sizes are warned of.

    Example: pocketlens-bench compare before.json after.json --fail-on-worse"""
    import json

    from rich.console import Console

    from pocketlens_bench.report.compare import compared, print_compared
    from pocketlens_bench.report.results import read_result

    found = compared(read_result(old), read_result(new), everything=everything, scatter=scatter / 100, seed=seed)
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
    else:
        print_compared(Console(), found)
    if fail_on_worse and found["counts"]["worse"]:
        raise typer.Exit(1)
