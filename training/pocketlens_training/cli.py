"""`pocketlens-train`: from nothing to checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from pocketlens_training.recipe import Recipe
    from pocketlens_training.school import School

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
    _need_torch()
    from pocketlens_training.recipe import TINY, Recipe
    from pocketlens_training.sample import learn

    recipe = TINY if tiny else Recipe()
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    _teach(recipe, out, device, threads, learn)


@app.command()
def sibling(
    run: Annotated[Path, typer.Argument(help="Run folder of `pocketlens-train sample`.")],
    tokens: Annotated[list[int], typer.Option(min=1, help="Tokens it shall write a picture as; repeatable.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.")] = 0,
) -> None:
    """Train further students for the same teacher, which write a picture as other numbers of tokens.

    Same recipe, steps and pictures as the run's own student; only the number of tokens differs. Leaves
    RUN/student-k<tokens>.safetensors. Killed anywhere, the same command goes on where it stopped.

    Example: pocketlens-train sibling runs/sample --tokens 1 --tokens 2 --tokens 8

    On to a device: pocketlens-export sibling RUN --tokens 8 -o DIR
    """
    _need_torch()
    from pocketlens_training.recipe import Recipe
    from pocketlens_training.sample import learn_siblings

    written = run / "recipe.json"
    if not written.is_file():
        _refuse(f"{run}: no training (it has no recipe.json); begin one with `pocketlens-train sample -o {run}`")
    _teach(Recipe.read(written), run, device, threads, lambda school: learn_siblings(school, tokens))


@app.command()
def teachers(
    name: Annotated[
        str | None, typer.Argument(help="One of them: load it, and say what it is. It may be fetched from its hub.")
    ] = None,
) -> None:
    """Which pretrained models can teach, and how they are named.

    Example: pocketlens-train teachers open_clip:ViT-B-32@weights.safetensors"""
    _need_torch()
    from pocketlens_training.teachers.naming import FAMILIES, FORMS, REFUSED, load_teacher
    from pocketlens_training.teachers.teacher import CannotTeach

    if name is None:
        _print_table(("teaches", "for example", "its text tower"), FAMILIES)
        _print_table(("form of a name", "means"), FORMS)
        _print_table(("refused", "because"), REFUSED)
        return
    try:
        teacher = load_teacher(name)
    except CannotTeach as wrong:
        _refuse(str(wrong), because=wrong)
    typer.echo(json.dumps(teacher.card(), indent=2))


def _print_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table()
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def _teach(recipe: Recipe, folder: Path, device: str, threads: int, learn: Callable[[School], None]) -> None:
    """Run `learn` in the school of `folder` and print a summary; what is wrong with the request is one line."""
    import torch

    from pocketlens_training.loop import progress_bar
    from pocketlens_training.school import School

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    with progress_bar() as progress:
        try:
            learn(School(recipe, folder, torch.device(device), progress))
        except (ValueError, FileNotFoundError) as wrong:
            _refuse(str(wrong), because=wrong)
    minutes = (time.monotonic() - started) / 60
    summary = {"run": str(folder), "device": device, "torch": torch.__version__, "minutes": round(minutes, 1)}
    typer.echo(json.dumps(summary))


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as missing:
        _refuse("torch is not installed here: pip install 'pocketlens[train]'", because=missing)


def _refuse(message: str, *, because: Exception | None = None) -> NoReturn:
    typer.echo(f"pocketlens-train: {message}", err=True)
    raise typer.Exit(1) from because
