"""`pocketlens-bench indexing`: options and help."""

import re
from typing import Annotated

import typer

from pocketlens_bench.cli.root import (
    Bundle,
    Json,
    Out,
    Seed,
    check_out,
    commands,
    named_bundle,
    progress,
    seconds_of,
    tell,
)


@commands.command()
def indexing(
    bundle: Bundle = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per run of the image tower.")] = 64,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=False, help="Of the tower, and pictures decoded at once (default: all cores)."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Form of the image tower: fp32 or int8.")] = "fp32",
    pictures: Annotated[int | None, typer.Option(min=1, show_default=False, help="How many to index.")] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Pixels of each.")] = "640x480",
    kill_for: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            show_default=False,
            help="Kill an indexing at random moments for so long, as 90s or 30m; then compare the gallery.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few pictures, one round: for a look.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Pictures a second of `pocketlens-cloud index` beside the bare image tower; or what kills do to it.

    Decoding in threads and in processes, twice each, the bare tower before and after each. Leave the machine alone
    meanwhile.

    Example: pocketlens-bench indexing --size 1024x768 --out indexing.json

    Example: pocketlens-bench indexing --kill-for 30m"""
    from dataclasses import replace

    from pocketlens_bench.indexing import FULL, QUICK, kill, measure
    from pocketlens_bench.report.console_indexing import print_indexing, print_kills

    check_out(out)
    with progress() as on_progress:
        if kill_for:
            result = kill(named_bundle(bundle), seconds_of(kill_for, "--kill-for"), seed=seed, on_progress=on_progress)
        else:
            width, height = _size(size)
            sizes = replace(QUICK if quick else FULL, width=width, height=height)
            result = measure(
                named_bundle(bundle), batch=batch, threads=threads, precision=precision,
                sizes=replace(sizes, pictures=pictures or sizes.pictures), seed=seed, on_progress=on_progress,
            )  # fmt: skip
    tell(result, as_json, out, print_kills if kill_for else print_indexing)
    if kill_for and any(result["faults"].values()):
        raise typer.Exit(1)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise typer.BadParameter("is a size as 640x480", param_hint="--size")
    return int(found[1]), int(found[2])
