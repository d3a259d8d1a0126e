"""`pocketlens-bench refine`: options and help."""

from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


@commands.command()
def refine(
    bundle: Bundle = None,
    quick: Annotated[bool, typer.Option("--quick", help="A part of each set: for a look, not for a report.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the cloud's models and of drawing (default: all cores).")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """What refining a question does: words to lead away from, words with weights, re-ranking.

    Of the first ten hits, the share without what "not" names, of the picture's category, and with what the other words
    ask for; beside other ways to say the same. Then what re-ranking does to composed queries and to sketches. The
    sample world; says where it loses.

    Example: pocketlens-bench refine --out refine.json"""
    from pocketlens_bench.refine import FULL, QUICK, measure
    from pocketlens_bench.report.console_refine import print_refine

    check_out(out)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), sizes=QUICK if quick else FULL, seed=seed, threads=threads, on_progress=on_progress
        )
    tell(result, as_json, out, print_refine)
