"""`pocketlens-bench distill`: options and help."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Json, Out, check_out, commands, progress, tell
from pocketlens_bench.cli.scale import default_cache


@commands.command()
def distill(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="As `pocketlens-train distill --teacher` takes it.")
    ],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="As its --images.")],
    student: Annotated[str, typer.Option(metavar="NAME", help="As its --student; begins without weights.")] = "tiny",
    told: Annotated[Path | None, typer.Option(metavar="FILE", help="As its --told: adds a row.")] = None,
    batch: Annotated[int, typer.Option(min=2, help="Pictures in one step.")] = 256,
    steps: Annotated[int, typer.Option(min=4, help="Steps in one round.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, by turns.")] = 5,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures ahead.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """How fast a distillation goes, beside the bare student and text tower, forward and backward.

    From pictures per second follows how long a training takes on this machine: docs/train-your-own.md shows how. The
    teacher's vectors of all pictures are made first: a few thousand pictures are enough. Needs pocketlens\\[train].

    Example: pocketlens-bench distill sample photos --student tiny --threads 4"""
    from pocketlens_wire.errors import PocketlensError

    check_out(out)
    try:
        import torch
    except ModuleNotFoundError as missing:
        raise PocketlensError(f"{missing.name} is not installed here: pip install 'pocketlens[train]'") from missing
    from pocketlens_bench.distil_pace import measure
    from pocketlens_bench.report.console_distil import print_distil

    if threads:
        torch.set_num_threads(threads)
    try:
        with progress() as on_progress:
            result = measure(
                teacher, images, told=told, student_name=student, batch=batch, steps=steps, rounds=rounds,
                workers=workers, cache=default_cache() / "training", on_progress=on_progress,
            )  # fmt: skip
    except ValueError as wrong:
        raise PocketlensError(str(wrong)) from wrong
    tell(result, as_json, out, print_distil)
