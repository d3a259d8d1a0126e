"""A little set and an untrained teacher, with which a lesson of a few steps takes a moment."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from pocketlens_training.loop import machine, progress_bar, write_json
from rich.progress import Progress

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}
SHAPES = ("round", "square", "flat")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def cpu() -> Accelerator:
    """Where lessons run: float32 on the CPU, so that numbers can be compared bit for bit."""
    return machine("cpu", "fp32")


@pytest.fixture
def quiet() -> Progress:
    progress = progress_bar()
    progress.disable = True
    progress.console.quiet = True
    return progress


def _drawn(number: int, *, pencil: bool = False, side: int = 48) -> bytes:
    rng = np.random.default_rng(number)
    colour = list(COLOURS.values())[number % 4]
    picture = Image.new("RGB", (side, side), (255, 255, 255) if pencil else (240, 235, 225))
    pen = ImageDraw.Draw(picture)
    x, y = rng.integers(4, 16, 2).tolist()
    box = (x, y, x + 24, y + (10 if number % 3 == 2 else 24))
    outline, fill = ((0, 0, 0), None) if pencil else (None, colour)
    (pen.ellipse if number % 3 == 0 else pen.rectangle)(box, fill=fill, outline=outline)
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="session")
def draw() -> Callable[..., bytes]:
    """draw(number, pencil=False): a PNG that differs from number to number."""
    return _drawn


def _caption(number: int) -> str:
    return f"a {list(COLOURS)[number % 4]} {SHAPES[number % 3]} thing"


def _write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def write_lines() -> Callable[[Path, list[dict]], Path]:
    return _write_lines


@pytest.fixture(scope="session")
def caption_of() -> Callable[[int], str]:
    return _caption


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photos, 12 sketches, all files that lessons take, and an untrained teacher in `teacher`."""
    home = tmp_path_factory.mktemp("little")
    photos, sketches = home / "photos", home / "sketches"
    photos.mkdir()
    sketches.mkdir()
    count = 48
    for n in range(count):
        (photos / f"{n:02d}.png").write_bytes(_drawn(n))
    for n in range(12):
        (sketches / f"{n:02d}.png").write_bytes(_drawn(n, pencil=True))
    names = [f"photos/{n:02d}.png" for n in range(count)]
    pairs = [
        {"image": names[n], "captions": [_caption(n), f"one {_caption(n)[2:]}"], "group": n // 2,
         "attributes": {"colour": list(COLOURS)[n % 4]}}
        for n in range(count)
    ]  # fmt: skip
    pairs += [{"image": names[n], "caption": _caption(n + 1), "edit": f"make it {_caption(n)}"} for n in range(24)]
    _write_lines(home / "pairs.jsonl", pairs)
    told = [{"caption": _caption(n), "edits": ["make it red", "in blue"]} for n in range(12)]
    _write_lines(home / "told.jsonl", told)
    drawn = [{"sketch": f"sketches/{n:02d}.png", "photo": names[n]} for n in range(12)]
    _write_lines(home / "sketches.jsonl", drawn)
    triplets = [
        {"reference": names[n], "text": f"but {list(COLOURS)[(n + 1) % 4]}", "target": names[n + 1],
         **({"caption": _caption(n + 1)} if n % 2 else {})}
        for n in range(count - 1)
    ]  # fmt: skip
    _write_lines(home / "triplets.jsonl", triplets)
    asked = [{"reference": names[n], "text": "but red", "targets": [names[n + 1], names[n + 5]]} for n in range(4)]
    _write_lines(home / "questions.jsonl", asked)
    _write_teacher(home / "teacher")
    return home


def _write_teacher(folder: Path) -> None:
    from pocketlens_training.loop import save_atomically
    from pocketlens_training.teachers.own import CARD, WEIGHTS, WORDS, TeacherRecipe, build_towers
    from pocketlens_training.teachers.vocabulary import ALWAYS, word_tokenizer

    folder.mkdir()
    recipe = TeacherRecipe(side=32, context=24, dim=16, word_width=32, text_layers=1, widths=(4, 8, 8, 16))
    words = {*ALWAYS, *COLOURS, *SHAPES, "thing", "one", "make", "it", "in", "but"}
    tokenizer = word_tokenizer(sorted(words))
    torch.manual_seed(5)
    towers = build_towers(recipe, tokenizer.get_vocab_size())
    # Statistics of its own, or every picture would look nearly alike to it.
    towers.train()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(_drawn(n))).resize((32, 32))) for n in range(16)])
    with torch.no_grad():
        for _ in range(20):
            towers.image(torch.from_numpy(pixels))
    recipe.write(folder / "recipe.json")
    tokenizer.save(str(folder / WORDS))
    save_atomically(towers.state_dict(), folder / WEIGHTS)
    write_json(folder / CARD, {"format": 1, "vocabulary": tokenizer.get_vocab_size()})
