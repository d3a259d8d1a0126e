"""`pocketlens-bench scale` and `tradeoff`: options and help."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell

Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where features and built galleries are kept, so that a stopped run goes on. "
        "Default: pocketlens/bench in $XDG_CACHE_HOME or ~/.cache.",
        show_default=False,
    ),
]


@commands.command()
def scale(
    bundle: Bundle = None,
    quick: Annotated[bool, typer.Option("--quick", help="Up to 10,000 pictures, a third of the questions.")] = False,
    cache: Cache = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the models and of drawing (default: all cores).")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """What is still found as the gallery grows from 1,000 pictures to 1,000,000.

    1,200 composed questions. Up to 100,000 the distractors are pictures, drawn and put through the large image tower;
    above that they are synthetic vectors made to match them, and how well they match is measured too. Search is exact
    at every size; at 10,000, 100,000 and 1,000,000 also approximate, in the gallery on disk with its default settings.
    Takes about half an hour on 4 cores, 10 GB of memory and 6 GB of disk; a stopped run goes on where pictures are
    concerned.

    Example: pocketlens-bench scale --out scale.json"""
    from pocketlens_bench.report.console_scale import print_scale
    from pocketlens_bench.scale import FULL, QUICK, measure

    check_out(out)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), cache or default_cache(), sizes=QUICK if quick else FULL, seed=seed, threads=threads,
            on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_scale)


@commands.command()
def tradeoff(
    quick: Annotated[bool, typer.Option("--quick", help="50,000 vectors: for a look, not for a choice.")] = False,
    vectors: Annotated[int | None, typer.Option(min=1000, help="Vectors in the gallery instead of 1,000,000.")] = None,
    width: Annotated[int | None, typer.Option(min=2, help="Numbers of a vector instead of 512.")] = None,
    inner: Annotated[int | None, typer.Option(min=1, help="Dimensions they really have, instead of 64.")] = None,
    cache: Cache = None,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Approximate against exact search in the embedded gallery: recall, time, memory, and what building costs.

    Six ways of building (links m, breadth ef_construct, int8 copies or none), each walked in up to four ways at seven
    breadths ef; one search at a time. The gallery's defaults come from this table. A million vectors take an hour
    on 4 cores, 10 GB of memory and 3 GB of disk for each way of building; what is built stays built.

    Example: pocketlens-bench tradeoff --out tradeoff.json"""
    from dataclasses import replace

    from pocketlens_bench.report.console_scale import print_tradeoff
    from pocketlens_bench.tradeoff import FULL, QUICK, measure

    check_out(out)
    sizes = QUICK if quick else FULL
    named = {"vectors": vectors, "width": width, "inner": inner}
    sizes = replace(sizes, **{name: value for name, value in named.items() if value is not None})
    if sizes.inner > sizes.width:
        raise typer.BadParameter(f"--inner {sizes.inner}: vectors of width {sizes.width} cannot have more dimensions")
    with progress() as on_progress:
        result = measure(cache or default_cache(), sizes=sizes, seed=seed, on_progress=on_progress)
    tell(result, as_json, out, print_tradeoff)


def default_cache() -> Path:
    """The folder of this user for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketlens" / "bench"
