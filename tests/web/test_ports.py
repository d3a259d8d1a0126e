"""The TypeScript that repeats the wire room says the same, byte for byte. Needs node, no browser."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from PIL import Image
from pocketlens_wire.errors import BadQuery
from pocketlens_wire.pictures import PictureSpec, fit, open_picture
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb

ROOT = Path(__file__).parents[2]
WEB = ROOT / "edge" / "web"
GENERATED = WEB / "src" / "gen" / "pocketlens_wire" / "v1" / "retrieval_pb.ts"
PROTO = "pocketlens_wire/v1/retrieval.proto"
PARTS = """
export { fit } from "./src/fit";
export { formatOf, readHeader } from "./src/header";
export { pack } from "./src/tokens";
export { SentenceSchema } from "./src/gen/pocketlens_wire/v1/retrieval_pb";
export { toBinary } from "@bufbuild/protobuf";
"""

Ask = Callable[[list[tuple[str, dict[str, Any]]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ask(packages, tmp_path_factory) -> Ask:
    """Put cases (what, given) to the TypeScript; each answer holds `done` or `failed`."""
    out = tmp_path_factory.mktemp("ports")
    bundle = [
        "npx",
        "--no-install",
        "esbuild",
        "--bundle",
        "--format=esm",
        "--platform=node",
        f"--outfile={out}/ports.js",
    ]
    done = subprocess.run([*bundle, "--log-level=error"], cwd=packages, input=PARTS, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    (out / "package.json").write_text('{"type": "module"}')

    def asking(cases: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        call = ["node", str(Path(__file__).with_name("ports.mjs")), str(out)]
        given = json.dumps([{"what": what, "given": given} for what, given in cases])
        said = subprocess.run(call, input=given, capture_output=True, text=True, timeout=120)
        assert said.returncode == 0, said.stderr
        return json.loads(said.stdout)

    return asking


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- generated code


def test_the_generated_code_speaks_the_schema_of_the_service():
    """Without node too: the descriptor inside the committed TypeScript is the one that Python speaks."""
    (inside,) = re.findall(r'fileDesc\("([^"]+)"', GENERATED.read_text())
    theirs = FileDescriptorProto.FromString(base64.b64decode(inside + "=" * (-len(inside) % 4)))
    ours = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert theirs == ours, "stale: run `make web`, then `make proto`, and commit"


def test_the_generated_code_is_fresh(packages, tmp_path):
    plugin = packages / "node_modules" / ".bin" / "protoc-gen-es"
    call = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"--plugin=protoc-gen-es={plugin}"]
    subprocess.run([*call, f"--es_out={tmp_path}", "--es_opt=target=ts", PROTO], check=True)
    fresh = (tmp_path / PROTO).with_name("retrieval_pb.ts").read_text()
    assert fresh == GENERATED.read_text(), "stale: run `make web`, then `make proto`, and commit"


def test_the_types_hold(packages):
    done = subprocess.run(["npm", "run", "--silent", "check"], cwd=packages, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_versions_are_exact_and_locked():
    """A page built tomorrow is the page tested today."""
    package, lock = (json.loads((WEB / name).read_text()) for name in ("package.json", "package-lock.json"))
    wanted = package["dependencies"] | package["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    locked = {path.removeprefix("node_modules/"): entry for path, entry in lock["packages"].items() if path}
    assert {name: locked[name]["version"] for name in wanted} == wanted
    assert all(entry["integrity"].startswith("sha512-") for entry in locked.values())


# --- the square


def test_fit_is_pillows_bit_for_bit(ask):
    random = np.random.default_rng(5)
    sizes = [(96, 96), (97, 96), (8, 8), (9, 2000), (2000, 9), (640, 480), (480, 640), (200, 304), (200, 305), (31, 33)]
    sizes += [tuple(int(side) for side in random.integers(8, 400, 2)) for _ in range(40)]
    specs = [
        PictureSpec(side=side, fit=how, resample=resample)
        for side in (96, 33, 224)
        for how in ("crop", "squash")
        for resample in ("bicubic", "bilinear")
    ]
    cases, wanted = [], []
    for number, (width, height) in enumerate(sizes):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        if number % 2:  # hard edges overshoot in bicubic: the clipping must be the same
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        for spec in {0, 1, 4, 6, number % 12, (number * 5 + 3) % 12}:
            chosen = specs[spec]
            given = {"side": chosen.side, "fit": chosen.fit, "resample": chosen.resample}
            cases.append(("fit", {"pixels": b64(pixels.tobytes()), "width": width, "height": height, "spec": given}))
            wanted.append((fit(Image.fromarray(pixels), chosen), width, height, chosen))
    for answer, (square, *case) in zip(ask(cases), wanted, strict=True):
        came = np.frombuffer(base64.b64decode(answer["done"]), np.uint8).reshape(square.shape)
        assert (came == square).all(), f"{case}: off by {np.abs(came.astype(int) - square).max()}"


# --- tokens


def test_tokens_are_packed_byte_for_byte(ask):
    random = np.random.default_rng(6)
    tables = [
        random.standard_normal((k, width)).astype(np.float32) for k, width in ((4, 192), (1, 1), (8, 7), (16, 512))
    ]
    tables += [
        random.standard_normal((2, 64)).astype(np.float32) * np.float32(10.0**power) for power in (-44, -38, -30, 2)
    ]
    tables.append(np.array([[0, 0, 0], [127, 0.5, 1.5], [-127, -0.5, 2.5], [1e4 / np.sqrt(3)] * 3], np.float32))  # ties
    tables.append(np.array([[1.5e-36, 1e-45, -1e-38]], np.float32))
    cases = [("pack", {"tokens": b64(t.tobytes()), "count": len(t), "width": t.shape[1]}) for t in tables]
    for answer, table in zip(ask(cases), tables, strict=True):
        assert base64.b64decode(answer["done"]) == pack(table, Encoding.INT8).SerializeToString(), table


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.1e4])
def test_tokens_that_must_not_leave_are_refused_as_in_python(ask, value):
    table = np.ones((2, 3), np.float32)
    table[1, 2] = value
    with pytest.raises(BadQuery):
        pack(table)
    (answer,) = ask([("pack", {"tokens": b64(table.tobytes()), "count": 2, "width": 3})])
    assert "Token 1" in answer["failed"]


# --- headers


def files() -> list[tuple[str, bytes, tuple[int, int, int]]]:
    """(name, file, (width, height, orientation))"""
    picture = Image.fromarray(np.random.default_rng(7).integers(0, 256, (20, 30, 3), np.uint8))
    found = []

    def add(name: str, kind: str, turn: int = 1, **options: Any) -> None:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        found.append((name, file.getvalue(), (30, 20, turn)))

    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        add(kind, kind)
    add("progressive", "JPEG", progressive=True)
    add("lossless", "WEBP", lossless=True)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "maker", turn
        for kind in ("JPEG", "PNG", "WEBP"):
            add(f"{kind} turned {turn}", kind, turn, exif=exif)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    add("xmp", "JPEG", 6, xmp=xmp)
    wrong = Image.Exif()
    wrong[0x0112] = 9
    add("no such orientation", "JPEG", 1, exif=wrong)
    return found


def test_size_and_orientation_are_read_from_the_header(ask):
    cases = files()
    answers = ask([("header", {"file": b64(file)}) for _, file, _ in cases])
    assert {name: tuple(answer["done"]) for (name, *_), answer in zip(cases, answers, strict=True)} == {
        name: said for name, _, said in cases
    }
    for name, file, (width, height, turn) in cases:  # and Python reads them so
        assert open_picture(file).size == ((width, height) if turn < 5 else (height, width)), name


def test_a_broken_header_ends_and_never_hangs(ask):
    random = np.random.default_rng(8)
    cases = []
    for _, file, _ in files():
        cuts = random.integers(16, min(len(file), 400), 4)
        cases += [("header", {"file": b64(file[:cut])}) for cut in cuts]
        for _ in range(6):
            broken = bytearray(file)
            for at in random.integers(8, min(len(file), 200), 3):
                broken[at] = int(random.integers(256))
            cases.append(("header", {"file": b64(bytes(broken))}))
    answers = ask(cases)
    assert all("done" in answer or answer["failed"] for answer in answers)
    assert any("failed" in answer for answer in answers)
