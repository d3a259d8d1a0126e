"""`pocketlens-bench network`: options and help."""

from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


@commands.command()
def network(
    bundle: Bundle = None,
    quick: Annotated[bool, typer.Option("--quick", help="LAN and 4G alone, few rounds: for a look.")] = False,
    gallery: Annotated[int, typer.Option(min=100, help="Pictures in the gallery.")] = 3000,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Tokens or the picture itself: bytes and time from photo to answer, on LAN, home Wi-Fi, 4G, 3G and 2G.

    The baseline is the best we can build without a light encoder: the device sends a JPEG (as taken, at 512 pixels, or
    as small as the large tower takes it), the cloud runs the large image tower, and everything behind it is the same.
    Networks are simulated at the socket; what is modelled is said with the result. Takes about twenty minutes; leave
    the machine alone meanwhile.

    Example: pocketlens-bench network --out network.json"""
    from pocketlens_bench.network import BUDGET_S, PROFILES, measure
    from pocketlens_bench.report.console_network import print_network

    check_out(out)
    profiles = [each for each in PROFILES if each.name in ("LAN", "4G")] if quick else PROFILES
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), profiles=profiles, gallery=min(gallery, 500) if quick else gallery,
            budget_s=1.0 if quick else BUDGET_S, seed=seed, on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_network)
