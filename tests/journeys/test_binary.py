"""The self-contained program as a device gets it: no Python, no PATH, no environment, a real server to ask.

$POCKETLENS_EDGE_BINARY names one that was packed before; otherwise it is packed here, or the tests say why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pocketlens_bench.server import serving
from pocketlens_cloud.indexing import ingest
from pocketlens_edge.encoder import Encoder
from pocketlens_samples.queries import composed_set, write_gallery
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.manifest import read_edge

FOREIGN = {"torch", "onnx", "qdrant_edge", "tokenizers", "pocketlens_cloud", "pocketlens_samples", "pydantic"}
# What every Linux has: the parts of glibc, and zlib for PyInstaller's starter.
OF_THE_SYSTEM = {
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libz.so.1"),
    *("linux-vdso.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
}
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks at ELF files and namespaces")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """HOST:PORT of `pocketlens-cloud serve` upon a small gallery of the sample world."""
    at = tmp_path_factory.mktemp("world")
    write_gallery(at / "pictures", composed_set(queries=4, gallery=60).gallery, processes=1)
    ingest.index(at / "pictures", at / "gallery", default_bundle())
    with serving(default_bundle(), at / "gallery", threads=1) as server:
        yield server.address


@pytest.fixture
def ask(edge_binary, tmp_path):
    """Run it somewhere else, in an empty environment."""

    def run(*arguments: object, program: Path = edge_binary) -> subprocess.CompletedProcess[str]:
        call = [str(program), *map(str, arguments)]
        return subprocess.run(call, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60)

    return run


# --- what it does


def test_it_says_what_it_can_do(ask):
    asked = ask("--help")
    assert asked.returncode == 0, asked.stderr
    assert all(command in asked.stdout for command in ("search", "encode", "doctor"))
    assert "Not the picture, its name or its place" in " ".join(ask("search", "--help").stdout.split())
    assert re.fullmatch(r"pocketlens-edge \d+\.\d+\.\d+\n", ask("--version").stdout)


def test_a_picture_and_words_find_pictures(ask, address, golden_folder):
    picture = next(golden_folder.glob("*-shape-640x480.jpg"))
    asked = ask("search", picture, "--text", "make it red", "--server", address, "--json")
    assert asked.returncode == 0, asked.stderr
    assert len(json.loads(asked.stdout)["hits"]) == 10
    assert ask("search", "--text", "a red mug", "--server", address).stdout.count(".jpg") == 10


def test_answers_become_pictures(ask, address, golden_folder, tmp_path):
    picture = next(golden_folder.glob("*-exif-6-320x200.jpg"))
    shown = ("--sheet", "sheet.png", "--html", "page.html")
    asked = ask("search", picture, "--server", address, *shown)
    assert asked.returncode == 0, asked.stderr
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_its_tokens_are_those_of_the_library(ask, golden_folder, tmp_path):
    picture = next(golden_folder.glob("*-shape-480x640.png"))
    asked = ask("encode", picture, "-o", "tokens.npz", "--json")
    assert asked.returncode == 0, asked.stderr
    with np.load(tmp_path / "tokens.npz") as written:
        library = Encoder.load(default_bundle()).encode_timed(picture)
        np.testing.assert_allclose(written["tokens"], library.tokens, atol=1e-5)


def test_its_doctor_finds_all_well(ask, address):
    asked = ask("doctor", "--server", address, "--json")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    checks = json.loads(asked.stdout)["checks"]
    assert {"bundle", "encoder", "golden", "latency", "server"} <= checks.keys()
    assert "not installed" not in checks["machine"]["said"]


def test_a_link_to_it_is_enough(ask, edge_binary, tmp_path):
    (tmp_path / "elsewhere").symlink_to(edge_binary)
    assert ask("doctor", program=tmp_path / "elsewhere").returncode == 0


# --- what it refuses


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["encode", "nothing.jpg"], 1, "nothing.jpg: no such file"),
        (["encode", "words.jpg"], 1, "not a picture of a known kind"),
        (["search", "--text", "red", "--server", "127.0.0.1:9", "--timeout", "0.5"], 1, "127.0.0.1:9"),
        (["search"], 2, "give a PICTURE, or words"),
        (["serach"], 2, "No such command"),
        (["encode", "words.jpg", "--threads", "many"], 2, "--threads"),
        (["encode", "words.jpg", "--bundle", "nowhere"], 1, "nowhere"),
        (["encode", "words.jpg", "--precision", "int3"], 1, "int3"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(ask, tmp_path, arguments, code, said):
    (tmp_path / "words.jpg").write_text("not a picture")
    asked = ask(*arguments)
    assert asked.returncode == code, asked.stderr
    (line,) = asked.stderr.splitlines()
    assert said in line


def test_a_damaged_bundle_is_refused(ask, edge_binary, golden_folder, tmp_path):
    shutil.copytree(edge_binary.parent / "bundle", tmp_path / "bundle")
    graph = tmp_path / "bundle/edge" / read_edge(tmp_path / "bundle").graph().file
    damaged = bytearray(graph.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    graph.write_bytes(damaged)
    asked = ask("encode", next(golden_folder.glob("*.png")), "--bundle", "bundle")
    assert asked.returncode == 1
    assert f"{graph.name}: altered since export" in asked.stderr


# --- what is in it


def test_the_bundle_lies_beside_it_and_nothing_else_of_this_tree(edge_binary):
    assert read_edge(edge_binary.parent / "bundle").token_space == read_edge(default_bundle()).token_space
    assert {path.name for path in edge_binary.parent.iterdir()} == {
        "pocketlens-edge", "_internal", "bundle", "LICENSES.txt",
    }  # fmt: skip
    here = str(Path(__file__).parents[2]).encode()
    tells = [path for path in _files(edge_binary.parent) if here in path.read_bytes()]
    assert tells == [], "names the folder it was built in"


def test_nothing_heavy_or_foreign_came_along(edge_binary):
    modules = {name.partition(".")[0] for name in _modules(edge_binary)}
    assert "pocketlens_edge" in modules
    assert modules.isdisjoint(FOREIGN | {"readline", "tkinter", "pytest"})


def test_every_part_is_listed_with_its_licence(edge_binary):
    said = (edge_binary.parent / "LICENSES.txt").read_text(encoding="utf-8")
    holds = {name for line in re.findall(r"^    holds: (.+)$", said, re.MULTILINE) for name in line.split(", ")}
    packages = {name.partition(".")[0] for name in _modules(edge_binary)} - sys.stdlib_module_names
    of_the_packer = {name for name in packages if name.startswith(("pyi", "_pyi"))}
    assert packages - of_the_packer - holds == set()
    libraries = {path.name for path in _files(edge_binary.parent) if ".so" in path.suffixes}
    assert len(libraries) > 30
    assert libraries - holds == set()
    for text in (
        "PYTHON SOFTWARE FOUNDATION LICENSE",
        "Apache License",
        "Independent JPEG Group",
        "OpenBLAS",
        "The Python Imaging Library",
        "THIRD PARTY SOFTWARE NOTICES",
        "GCC RUNTIME LIBRARY EXCEPTION",
    ):
        assert text.lower() in said.lower(), text


# --- what it needs


@linux_only
def test_it_needs_the_systems_c_library_and_zlib_alone(edge_binary, tmp_path):
    inside = {path.name for path in _files(edge_binary.parent / "_internal")}
    for path in _files(edge_binary.parent):
        if path.read_bytes()[:4] == b"\x7fELF":
            needed = re.findall(r"NEEDED\s+.*\[(.+)\]", _output("readelf", "-d", path))
            assert set(needed) - inside <= OF_THE_SYSTEM, path


@linux_only
def test_it_runs_where_there_is_nothing_else(edge_binary, address, golden_folder, tmp_path):
    """A root of its own: the program, those libraries, /proc and /dev; no shell, no Python."""
    root = tmp_path / "root"
    for folder in ("proc", "dev", "app"):
        (root / folder).mkdir(parents=True)
    loader = re.search(r"interpreter: (\S+)\]", _output("readelf", "-l", edge_binary))
    assert loader
    ldconfig = shutil.which("ldconfig", path=f"{os.defpath}:/sbin:/usr/sbin")  # not on everybody's path
    assert ldconfig
    known = re.findall(r"^\s+(\S+) \(.*\) => (\S+)$", _output(ldconfig, "-p"), re.MULTILINE)
    found = dict(reversed(known))  # of the same name the first
    for path in [Path(loader[1]), *(Path(found[name]) for name in OF_THE_SYSTEM & found.keys())]:
        (root / path.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.relative_to("/"))
    shutil.copytree(edge_binary.parent, root / "app", dirs_exist_ok=True)
    shutil.copy(next(golden_folder.glob("*-shape-640x480.jpg")), root / "mug.jpg")
    mounts = 'mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev"'
    inside = f'{mounts} && PATH=$PATH:/usr/sbin:/sbin exec chroot "$0" "$@"'
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, str(root)]
    if subprocess.run([*enter, "/app/pocketlens-edge", "--version"], capture_output=True).returncode:
        allowed = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True)
        if allowed.returncode:
            pytest.skip("this machine allows no namespaces")
    question = ["/app/pocketlens-edge", "search", "/mug.jpg", "--text", "red", "--server", address, "--json"]
    asked = subprocess.run([*enter, *question], capture_output=True, text=True, timeout=60)
    assert asked.returncode == 0, asked.stderr
    assert len(json.loads(asked.stdout)["hits"]) == 10


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def _modules(binary: Path) -> list[str]:
    """The names of all modules packed into the program."""
    readers = pytest.importorskip("PyInstaller.archive.readers")
    return list(readers.CArchiveReader(str(binary)).open_embedded_archive("PYZ.pyz").toc)


def _output(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
