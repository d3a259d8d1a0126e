"""`pocketlens-bench chaos`: options and help."""

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
def chaos(
    bundle: Bundle = None,
    time: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", show_default=False, help="Of each part, as 90s or 30m (default: 5m)."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.1, show_default=False, help="Questions a second (default: 30).")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.1, show_default=False, help="The clients' deadline (default: 5)."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART", help="replicas, versions or rotation; may come several times.", show_default=False
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="20 s of each part, small galleries: for a look.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """What survives while clients ask: kills, new versions, new certificates and keys. Counts, which must be 0.

    replicas: two servers, one of them killed (-9) at random moments and started again, never both; beside them an
    indexing is killed likewise, and its gallery compared with an undisturbed one. versions: promote and rollback, again
    and again, between versions without a picture in common. rotation: certificate and key of an encrypted server
    replaced. Every answer is compared with an undisturbed server's. Leaves with 1 if anything broke.

    Example: pocketlens-bench chaos --for 30m --out chaos.json"""
    from dataclasses import replace

    from pocketlens_bench.chaos.driver import PARTS, QUICK, Sizes, measure
    from pocketlens_bench.report.console_chaos import print_chaos

    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"{min(unknown)}: it is {', '.join(PARTS)}", param_hint="--only")
    sizes = QUICK if quick else Sizes()
    sizes = replace(sizes, rate=rate or sizes.rate, timeout_s=timeout or sizes.timeout_s)
    if time:
        sizes = replace(sizes, seconds=seconds_of(time, "--for"))
    check_out(out)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), parts=[part for part in PARTS if part in (only or PARTS)],
            sizes=sizes, seed=seed, on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_chaos)
    if result["broken"]:
        raise typer.Exit(1)
