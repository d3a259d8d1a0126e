"""`pocketlens-bench paper`: options and help."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Seed, commands, named_bundle, progress


@commands.command()
def paper(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results and the page.")],
    bundle: Bundle = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sets: for a look, not for a report.")] = False,
    only: Annotated[
        str | None,
        typer.Option(metavar="KIND,...", help="Only these tables, by kind (default: all).", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the accuracy tables (default: all cores); times use one.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Measure every table of a paper into a folder, then write the page over them.

    One after the other, so that nothing disturbs the times; leave the machine alone meanwhile. A table that is already
    in the folder, of the same bundle, sizes and seed, is kept: after a break the same command goes on.

    Example: pocketlens-bench paper --quick --out paper"""
    from pocketlens_bench.paper import PARTS, Run, measured
    from pocketlens_bench.report.page import page_of, write
    from pocketlens_bench.report.results import read_results

    if out.is_file():
        raise typer.BadParameter(f"--out {out}: a file; name a folder")
    kinds = [part.kind for part in PARTS]
    wanted = [kind.strip() for kind in only.split(",")] if only is not None else kinds
    if unknown := [kind for kind in wanted if kind not in kinds]:
        raise typer.BadParameter(f"--only {unknown[0]}: tables are {', '.join(kinds)}")
    run = Run(bundle=named_bundle(bundle), quick=quick, seed=seed, threads=threads)
    total = 0.0
    with progress() as on_progress:
        for _, done in measured([part for part in PARTS if part.kind in wanted], run, out, on_progress=on_progress):
            total += done.seconds
            typer.echo(f"{done.file}: {'was there' if done.kept else f'{done.seconds:.0f} s'}", err=True)
    page = out / "results.md"
    write(page_of(read_results([out]), page), page)
    typer.echo(f"{page}: {total:.0f} s of measuring", err=True)
    typer.echo(page)
