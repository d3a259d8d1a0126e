"""`pocketlens-bench serving`: options and help."""

from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


@commands.command()
def serving(
    bundle: Bundle = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", show_default=False, help="Compare with this model of open_clip, as ViT-B-32."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Form of the text tower: fp32 or int8.")] = "fp32",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one run of the text tower.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes: for a look.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Questions a second beside the bare text tower and beside open_clip, and what ten times too many do.

    Words of 8 to 40 tokens, all lengths equally often. The last processor asks, the others serve, or run what is
    compared. Then one question at a time: what it costs beyond tower and search. Then 70 % of what the server can do,
    ten times as much for five minutes, and 70 % again. Takes about eight minutes; leave the machine alone meanwhile.

    Example: pocketlens-bench serving --bundle photos-bundle --baseline ViT-B-32 --out serving.json"""
    from pocketlens_bench.report.console_serving import print_serving
    from pocketlens_bench.serving import FULL, QUICK, measure

    check_out(out)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), baseline=baseline, precision=precision, threads=threads,
            sizes=QUICK if quick else FULL, seed=seed, on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_serving)
