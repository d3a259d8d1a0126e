"""`pocketlens-bench latency`: options and help."""

from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


@commands.command()
def latency(
    bundle: Bundle = None,
    rounds: Annotated[int, typer.Option(min=10, help="Rounds of each measurement.")] = 200,
    gallery: Annotated[int, typer.Option(min=100, help="Pictures in the gallery.")] = 3000,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """How long it takes and how much it sends, with one thread, in one run.

    The device's stages; the student against the large image tower, in turn; the whole way through a real server
    process on loopback; the server's start; the bytes of a request, counted on the wire. Leave the machine alone
    meanwhile: the load at the start is reported.

    Example: pocketlens-bench latency --rounds 500"""
    from pocketlens_bench.latency import measure
    from pocketlens_bench.report.console import print_latency

    check_out(out)
    with progress() as on_progress:
        result = measure(named_bundle(bundle), rounds=rounds, gallery=gallery, seed=seed, on_progress=on_progress)
    tell(result, as_json, out, print_latency)
