"""The examples of docs/sdk.md and docs/converse.md, run as they stand, against a live server on the sample bundle."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pocketlens_edge
import pytest
from pocketlens_edge import Client, Encoder
from pocketlens_wire.bundle import default_bundle

PAGE = (Path(__file__).parents[2] / "docs/sdk.md").read_text()
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))

TALK = Path(__file__).parents[2] / "docs/converse.md"
(CONVERSATION,) = re.findall(r"^```python\n(.*?)^```", TALK.read_text(), re.MULTILINE | re.DOTALL)

# A camera that gives the picture twice, as OpenCV would: BGR.
CAMERA = """
import numpy as np
from PIL import Image
class VideoCapture:
    def __init__(self, number): self.left = [np.asarray(Image.open("mug.jpg"))[..., ::-1]] * 2
    def isOpened(self): return True
    def read(self): return (True, self.left.pop()) if self.left else (False, None)
"""


@pytest.fixture(scope="module")
def device(small_world, tmp_path_factory) -> Path:
    """A folder with what the examples name."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "bundle").symlink_to(default_bundle())
    shutil.copy(small_world / "mug.jpg", folder)
    shutil.copytree(small_world / "gallery", folder / "gallery")
    (folder / "photos").mkdir()
    for picture in sorted((small_world / "pictures").glob("*.jpg"))[:3]:
        shutil.copy(picture, folder / "photos")
    (folder / "cv2.py").write_text(CAMERA)
    return folder


@pytest.fixture
def run(device, address, installed):
    def run(title: str, where: str = address) -> list[str]:
        """Lines that the example prints."""
        paths = [str(device), str(installed), *filter(None, sys.path)]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", EXAMPLES.get(title, CONVERSATION).replace("127.0.0.1:50551", where)],
            cwd=device, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.splitlines()

    return run


@pytest.fixture(scope="module")
def wanted(device, address) -> list[tuple[str, str]]:
    """(score, file) of the hits for `mug.jpg`, made red."""
    encoder = Encoder.load(default_bundle())
    with Client(address, encoder) as client:
        hits = client.search(encoder.encode(device / "mug.jpg"), "make it red").hits
    return [(f"{hit.score:.3f}", str(hit.payload["file"])) for hit in hits]


def test_the_page_has_the_examples_that_are_run_here():
    assert list(EXAMPLES) == [
        "One question",
        "More to ask",
        "Many at once, in asyncio",
        "A camera",
        "A gallery on the device",
    ]
    assert PAGE.count("```python\n") == len(EXAMPLES)


def test_one_question(run, wanted):
    *hits, told = run("One question")
    assert [tuple(line.split()) for line in hits] == wanted[:5]
    assert re.fullmatch(r"\d+ bytes sent, answered in \d+ ms", told)


def test_more_to_ask(run):
    pages, groups = run("More to ask")
    assert pages == "8 True"
    assert len(set(ast.literal_eval(groups))) == 3


def test_a_conversation(run, wanted):
    in_force, going_back = run("A conversation")
    assert in_force == "['in blue (1)', 'on grass (2)']"
    number, files = going_back.split(" ", 1)
    assert (number, len(ast.literal_eval(files))) == ("4", 3)


def test_one_question_without_a_server_ends_in_a_sentence(device, installed):
    paths = os.pathsep.join([str(installed), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES["One question"].replace("50551", "1")],
        cwd=device, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("no answer: 127.0.0.1:1: No Pocketlens server answers there")
    assert len(done.stderr.splitlines()) == 1


def test_many_at_once(run, device):
    lines = run("Many at once, in asyncio")
    assert [line.split(" -> ")[0] for line in lines] == sorted(path.name for path in (device / "photos").iterdir())
    assert all(len(line.split(", ")) == 3 for line in lines)


def test_a_camera(run, wanted):
    """Frames come uncompressed, so their fitted pixels may differ from the file's by a few grey levels."""
    assert run("A camera") == [f"['{wanted[0][1]}']"] * 2


def test_a_camera_outlives_a_server_that_is_away(run):
    lines = run("A camera", "127.0.0.1:1")
    assert len(lines) == 2
    assert all("No Pocketlens server answers there" in line for line in lines)


def test_a_gallery_on_the_device(run, wanted):
    assert [tuple(line.split()) for line in run("A gallery on the device")] == wanted


def test_what_the_page_imports_is_there():
    (line,) = re.findall(r"^from pocketlens_edge import (Encoder, Client, .*)$", PAGE, re.MULTILINE)
    assert set(line.split(", ")) <= set(pocketlens_edge.__all__)


def test_the_errors_of_the_page_are_those_there_are():
    table = PAGE[PAGE.index("| error | when |") :]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    errors = {name for name in pocketlens_edge.__all__ if isinstance(getattr(pocketlens_edge, name), type)}
    errors = {name for name in errors if issubclass(getattr(pocketlens_edge, name), pocketlens_edge.PocketlensError)}
    assert named == errors - {"PocketlensError"}


def test_a_type_checker_finds_nothing_to_say_of_the_examples(tmp_path):
    """In strict mode: all types of the package are known to its users."""
    pytest.importorskip("pyright")
    for number, code in enumerate([*EXAMPLES.values(), CONVERSATION]):
        (tmp_path / f"example_{number}.py").write_text(code)
    (tmp_path / "cv2.pyi").write_text("from typing import Any\nVideoCapture: Any\n")
    rooms = [str(Path(__file__).parents[2] / room) for room in ("edge", "protos")]
    (tmp_path / "pyrightconfig.json").write_text(
        f'{{"typeCheckingMode": "strict", "extraPaths": {rooms}, "reportUnknownMemberType": false, '.replace("'", '"')
        + '"reportUnknownVariableType": false, "reportUnknownArgumentType": false}'
    )
    call = [sys.executable, "-m", "pyright", "--project", str(tmp_path), "--pythonpath", sys.executable]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
