"""`pocketlens-bench ablation`: options and help."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Json, Out, check_out, commands, progress, tell


@commands.command()
def ablation(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run of `pocketlens-train sample`: its set and teacher.")
    ],
    work: Annotated[Path, typer.Option(metavar="DIR", help="Where trials are kept; a stopped ablation goes on.")],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A group or a cell, repeatable; default all.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=8, help="Seeds of each cell.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a student.")] = 800,
    batch: Annotated[int, typer.Option(min=2, help="Pictures in one step.")] = 128,
    head_steps: Annotated[int, typer.Option(min=1, help="Steps of heads.")] = 500,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each.")] = 1,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """What each choice of a training gives, on the sample world: several seeds, mean and interval.

    Numbers of tokens, losses, sketches, sizes, targets with their controls, and every baseline upon the same teacher.
    Each trial is a short training; all of them take hours on a CPU. Needs pocketlens\\[train].

    Example: pocketlens-bench ablation runs/sample --work runs/ablation --jobs 4 --out ablation.json"""
    from pocketlens_wire.errors import PocketlensError

    check_out(out)
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as missing:
        raise PocketlensError(f"{missing.name} is not installed here: pip install 'pocketlens[train]'") from missing
    from pocketlens_bench.ablation.cells import chosen
    from pocketlens_bench.ablation.driver import measure
    from pocketlens_bench.ablation.trial import Trials
    from pocketlens_bench.report.console_ablation import print_ablation

    if not (run / "set" / "pairs.jsonl").is_file() or not (run / "teacher" / "teacher.json").is_file():
        raise PocketlensError(
            f"{run}: no sample run with a set and a teacher; `pocketlens-train sample -o {run}` makes one"
        )
    try:
        cells = chosen(only or [])
    except ValueError as wrong:
        raise PocketlensError(str(wrong)) from wrong
    trials = Trials(run=run, work=work, base={"steps": steps, "batch": batch}, head_steps=head_steps, threads=threads)
    with progress() as on_progress:
        result = measure(trials, cells, seeds=seeds, jobs=jobs, on_progress=on_progress)
    tell(result, as_json, out, print_ablation)
