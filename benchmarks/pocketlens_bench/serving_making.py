"""A whole bundle of real size with drawn weights, for measuring what serving it costs.

Weights do not change what a text tower costs. Made by the commands a user has: one step of distillation from a model of
open_clip, exported; then an int8 text tower beside it, which no gate has judged: drawn weights find nothing. Needs
the training and export extras. Called by serving.py's command."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import open_clip
import torch
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.doctor import differences
from pocketlens_cloud.towers import TextTower
from pocketlens_export.towers import dynamic
from pocketlens_samples.queries import composed_set, write_gallery
from pocketlens_wire import manifest as manifests
from pocketlens_wire.errors import ServerFault

PICTURES = 64
MARGIN = 4.0  # another machine's int8 may lie so many times farther from the original


def drawn_bundle(model: str, work: Path, *, seed: int) -> Path:
    """A bundle whose towers have the size of open_clip's `model`; made in `work` unless it lies there already.

    Raises ServerFault, quoting it, for a command that fails."""
    bundle = work / f"{model.lower()}-drawn-{seed}"
    if not bundle.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=work) as folder:
            _made(model, Path(folder), seed)
            _with_int8(Path(folder) / "bundle" / "cloud")
            (Path(folder) / "bundle").rename(bundle)
    return bundle


def _made(model: str, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    logging.disable(logging.WARNING)  # open_clip warns that no published weights were loaded, which is what is wanted
    try:
        torch.save(open_clip.create_model(model).state_dict(), folder / "drawn.pt")
    finally:
        logging.disable(logging.NOTSET)
    write_gallery(folder / "pictures", composed_set(queries=5, gallery=PICTURES).gallery, processes=1)
    teacher = f"open_clip:{model}@{folder / 'drawn.pt'}"
    run = ["--student", "tiny", "--images", folder / "pictures", "--steps", 1, "--batch", 8, "-o", folder / "run"]
    _said("pocketlens_training", "distill", "--teacher", teacher, *run)
    to = ["-o", folder / "bundle", "--name", f"{model.lower()}-drawn", "--exact-only"]
    _said("pocketlens_export", "bundle", folder / "run", *to)


def _said(package: str, *arguments: object) -> None:
    call = [sys.executable, "-m", package, *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFault(f"{package} {arguments[0]} left with {done.returncode}: {done.stderr.strip()[-300:]}")


def _with_int8(cloud: Path) -> None:
    """The smallest dynamic form of the text tower, put beside the exact one, with the tolerance that was seen."""
    manifest = manifests.read_cloud(cloud)
    original = cloud / manifest.text_tower["fp32"].file
    with TemporaryDirectory(dir=cloud.parent) as place:
        _, path = next(dynamic(original, Path(place)))
        file = path.replace(cloud / f"{original.stem}.int8.onnx")
    rough = {**manifest.text_tower, "int8": manifests.describe_tower(file, tolerance=2.0)}
    manifests.write(replace(manifest, text_tower=rough), cloud)
    composer = Composer.load(cloud)
    with np.load(cloud / manifest.golden.file, allow_pickle=False) as golden:
        tower = TextTower(cloud, manifests.read_cloud(cloud), precision="int8")
        far = max(far / scale for _, far, scale in differences(composer.with_tower(tower), golden))
    exact = {**manifest.text_tower, "int8": manifests.describe_tower(file, tolerance=MARGIN * far)}
    manifests.write(replace(manifest, text_tower=exact), cloud)
