"""`pocketlens-bench accuracy`: options and help."""

from typing import Annotated, Literal

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


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

    check_out(out)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), sizes=QUICK if quick else FULL, seed=seed, threads=threads, on_progress=on_progress
        )
    tell(result, as_json, out, print_accuracy)
