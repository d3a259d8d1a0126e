"""`pocketlens-train`: from nothing to checkpoints."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train teachers, light students and heads.\n\nExample: pocketlens-train sample -o runs/sample",
)


@app.callback()
def main() -> None:
    """Train teachers, light students and heads."""


@app.command()
def sample(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder: pictures, weights and logs go there.")] = Path(
        "runs/sample"
    ),
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="A recipe of seconds that only proves the code runs.")] = False,
) -> None:
    """Train the sample world's teacher, student and heads, from nothing.

    Draws a catalogue, trains a dual encoder on it, tunes its text tower on edits, distils the light student from
    unlabelled pictures, and trains the heads of the tuned mode with their control. Killed anywhere, the same
    command goes on where it stopped. Each lesson logs to OUT/<lesson>.log.jsonl (one JSON object every 20 steps).

    On to a bundle: pocketlens-export bundle OUT -o DIR
    """
    try:
        import torch
    except ModuleNotFoundError as missing:
        typer.echo("pocketlens-train: torch is not installed here: pip install 'pocketlens[train]'", err=True)
        raise typer.Exit(1) from missing

    from pocketlens_training.loop import progress_bar
    from pocketlens_training.recipe import TINY, Recipe
    from pocketlens_training.sample import learn
    from pocketlens_training.school import School

    if threads:
        torch.set_num_threads(threads)
    recipe = TINY if tiny else Recipe()
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    with progress_bar() as progress:
        try:
            learn(School(recipe, out, torch.device(device), progress))
        except ValueError as wrong:
            typer.echo(f"pocketlens-train: {wrong}", err=True)
            raise typer.Exit(1) from wrong
    minutes = (time.monotonic() - started) / 60
    summary = {"run": str(out), "device": device, "torch": torch.__version__, "minutes": round(minutes, 1)}
    typer.echo(json.dumps(summary))
