"""Another student of a training as a device's half on its own: tokens of the same meaning, another number of them.

The half belongs to the bundle of the same run: its token space is that bundle's, its encoder id is its own, and a cloud
half takes it once that id is among those it accepts. Layout and ids are bundle.py's, the checks parity.py's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pocketlens_training.checkpoint import Trained, load_run, load_sibling, sibling_folder

from pocketlens_export import parity
from pocketlens_export.bundle import PARITY_ROWS, cost_of, last_record, put_in_place, write_edge


def export_sibling(run: Path, out: Path, *, tokens: int, name: str) -> dict[str, object]:
    """Write the device's half of the student with `tokens` tokens to `out` and return its report.

    Raises FileNotFoundError for an unfinished run or a student not trained yet, FileExistsError when `out` exists,
    parity.NotEqual when the graph differs from its torch original."""
    with put_in_place(out) as building:
        return _build(load_run(run), building, tokens, name)


def _build(trained: Trained, folder: Path, tokens: int, name: str) -> dict[str, object]:
    student = load_sibling(trained, tokens)
    given = parity.material(PARITY_ROWS, trained.recipe.seed, trained.picture, trained.teacher.picture)
    with torch.no_grad():
        sentence = student(torch.from_numpy(given.pixels)).numpy()
    manifest = write_edge(trained, student, folder, given.pixels, sentence, name=name)
    checks = parity.passed([parity.check_encoder(folder, given.pixels, sentence)])
    log = sibling_folder(trained.folder, tokens) / "student.csv"
    report = {
        "name": name,
        "token_space": manifest.token_space,
        "encoder": manifest.graph().encoder,
        "tokens": tokens,
        "cost": {"student": cost_of(student, trained.picture.side)},
        "lessons": {"student": last_record(log)},
        **parity.made_with(),
        "parity": parity.as_report(checks),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report
