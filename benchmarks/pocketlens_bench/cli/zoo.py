"""`pocketlens-bench zoo`: options and help."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Json, Out, check_out, commands, progress, tell
from pocketlens_bench.cli.scale import default_cache


@commands.command()
def zoo(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A student or tower; repeatable. Default: all.", show_default=False),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Numbers of a student's token; repeatable. Default: 512 and 768.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each on the clock.")] = 60,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where graphs are made, once. Default: zoo in this user's cache.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn weights and pictures.")] = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """What a student costs: parameters, multiply-adds, bytes, time with 1 and 4 threads, memory.

    Light backbones with the token learner at the widths of CLIP's text towers, in fp32, fp16 and int8, beside the image
    towers of CLIP ViT-B/32 and MobileCLIP2-S0, exported by the same code and timed by turns in the same run. Weights
    are drawn and nothing is downloaded: this says what a student costs, not what it finds. The first run makes the
    graphs, which takes longest, and 2 GB of disk; a run that was stopped goes on. Leave the machine alone meanwhile.

    Needs pip install 'pocketlens\\[teachers,export,bench]'.

    Example: pocketlens-bench zoo --only mobilenetv4_conv_small --only ViT-B-32 --out zoo.json"""
    from pocketlens_wire.errors import PocketlensError

    from pocketlens_bench.report.console_zoo import print_zoo
    from pocketlens_bench.zoo import WIDTHS, chosen, measure

    check_out(out)
    widths = tuple(width or WIDTHS)
    chosen(only or (), widths)  # a wrong name is refused before heavy libraries are loaded
    try:
        import onnxslim
        import open_clip
        import timm
        import torch
    except ModuleNotFoundError as missing:
        raise PocketlensError(
            f"{missing.name} is not installed here: pip install 'pocketlens[teachers,export,bench]'"
        ) from missing
    del onnxslim, open_clip, timm, torch
    with progress() as on_progress:
        result = measure(
            work or default_cache() / "zoo", only=only or (), widths=widths, rounds=rounds, seed=seed,
            on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_zoo)
