"""`pocketlens-bench serving`: options and help."""

from pathlib import Path
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
from pocketlens_bench.cli.scale import default_cache


@commands.command()
def serving(
    bundle: Bundle = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", show_default=False, help="Compare with this model of open_clip, as ViT-B-32."),
    ] = None,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="Make a bundle of the baseline's size, with drawn weights, and serve that.")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="Where that bundle is kept (default: your cache folder)."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Form of the text tower: fp32 or int8.")] = "fp32",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one run of the text tower.")] = 1,
    overload: Annotated[
        str, typer.Option(metavar="TIME", help="How long ten times too many questions come, as 60s or 5m.")
    ] = "5m",
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes: for a look.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Questions a second beside the bare text tower and beside open_clip, and what ten times too many do.

    Words of 8 to 40 tokens, all lengths equally often. The last processor asks, the others serve, or run what is
    compared. Then one question at a time: what it costs beyond tower and search. Then 70 % of what the server can do,
    ten times as much for five minutes, and 70 % again. Takes about ten minutes; leave the machine alone meanwhile.

    Example: pocketlens-bench serving --baseline ViT-B-32 --drawn --out serving.json"""
    from dataclasses import replace

    from pocketlens_bench.report.console_serving import print_serving
    from pocketlens_bench.serving import FULL, QUICK, measure

    if drawn and (bundle or not baseline):
        raise typer.BadParameter("needs --baseline and no --bundle", param_hint="--drawn")
    overload_s = seconds_of(overload, "--overload")
    check_out(out)
    with progress() as on_progress:
        served = _drawn(str(baseline), work, seed) if drawn else named_bundle(bundle)
        result = measure(
            served, baseline=baseline, precision=precision, threads=threads,
            sizes=QUICK if quick else replace(FULL, overload_s=overload_s), seed=seed, on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_serving)


def _drawn(model: str, work: Path | None, seed: int) -> Path:
    from pocketlens_bench.serving_making import drawn_bundle

    return drawn_bundle(model, work or default_cache() / "serving", seed=seed)
