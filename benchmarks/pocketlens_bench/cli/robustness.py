"""`pocketlens-bench robustness` and `corruptions`: options and help."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


@commands.command()
def robustness(
    bundle: Bundle = None,
    quick: Annotated[bool, typer.Option("--quick", help="A sixth of the set: for a look, not for a report.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the models and of drawing (default: all cores).")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """How much is still found when the device's picture is blurred, noisy, badly lit, over-compressed or half covered.

    Ten corruptions at five severities, on 600 composed queries and 400 sketches, to 6,000 pictures each. Only the
    picture that is asked with is corrupted, before its JPEG file is written. The light student, zero-shot and tuned,
    stands beside the large tower on the very same files; drops are paired with the clean picture's result. What the
    corruptions look like: pocketlens-bench corruptions.

    Example: pocketlens-bench robustness --out robustness.json"""
    from pocketlens_bench.report.console_tables import print_robustness
    from pocketlens_bench.robustness import FULL, QUICK, measure

    check_out(out)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), sizes=QUICK if quick else FULL, seed=seed, threads=threads, on_progress=on_progress
        )
    tell(result, as_json, out, print_robustness)


@commands.command()
def corruptions(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="PNG to write.")] = Path("corruptions.png"),
    query: Annotated[int, typer.Option(min=0, help="Which picture of the composed set to show.")] = 12,
    seed: Seed = 0,
) -> None:
    """Draw one picture under every corruption at every severity, as the device would get it.

    Example: pocketlens-bench corruptions --out corruptions.png"""
    from pocketlens_samples.queries import composed_set

    from pocketlens_bench.corruptions import contact_sheet

    check_out(out)
    queries = composed_set().queries
    if query >= len(queries):
        raise typer.BadParameter(f"--query {query}: the set has pictures 0 to {len(queries) - 1}")
    contact_sheet(queries[query].anchor.pixels(), seed=seed).save(out, "PNG", optimize=True)
    typer.echo(f"{out}: {len(queries)} pictures to choose from with --query; this is {query}")
