"""A gallery searched on the device itself: the server's answers, ids and errors, and no network."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.indexing import ingest
from pocketlens_edge import Answer, AsyncClient, Client, Encoder, Mode, local, open_gallery
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import BadBundle, BadQuery, GalleryError, PocketlensError, SpaceMismatch
from pocketlens_wire.manifest import read_cloud, write

WORDS = "make it red"
QUESTIONS: dict[str, dict[str, Any]] = {
    "picture and words": {"words": WORDS},
    "picture alone": {"words": "", "top": 3},
    "words alone": {"tokens": None, "words": "a red mug"},
    "zero-shot": {"words": WORDS, "mode": Mode.ZERO_SHOT},
    "tuned": {"words": WORDS, "mode": Mode.TUNED},
    "filtered": {"words": WORDS, "where": {"count": 2, "part": False}},
    "words cut and unknown": {"words": "red frobnicated mug " * 40},
}
REFUSED: dict[str, tuple[type[PocketlensError], dict[str, Any]]] = {
    "unknown filter key": (BadQuery, {"words": WORDS, "where": {"price": 3}}),
    "wrong type of value": (BadQuery, {"words": WORDS, "where": {"count": "two"}}),
    "words too long": (BadQuery, {"words": "red " * 2000}),
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(default_bundle())


@pytest.fixture(scope="module")
def tokens(encoder, small_world) -> Any:
    return encoder.encode(small_world / "mug.jpg")


@pytest.fixture(autouse=True)
def _installed(installed, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(installed))


@pytest.fixture(scope="module")
def gallery(small_world, tmp_path_factory) -> Path:
    """A copy that no server holds."""
    folder = tmp_path_factory.mktemp("local") / "gallery"
    shutil.copytree(small_world / "gallery", folder)
    return folder


@pytest.fixture
def here(gallery) -> Iterator[local.LocalGallery]:
    with open_gallery(gallery) as opened:
        yield opened


def without_times(answer: Answer) -> Answer:
    assert answer.times_ms["round_trip"] >= answer.times_ms["total"] * 0.99 > 0
    return replace(answer, times_ms={}, request_bytes=0)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_it_answers_as_the_server_does(address, here, encoder, tokens, question):
    asked = {"tokens": tokens} | question
    with Client(address, encoder) as there, Client(here, encoder) as client:
        wanted, came = there.search(**asked), client.search(**asked)
    assert wanted.hits
    assert without_times(came) == without_times(wanted)
    assert came.request_bytes == 0 < wanted.request_bytes


@pytest.mark.parametrize(("kind", "question"), REFUSED.values(), ids=REFUSED)
def test_it_refuses_as_the_server_does(address, here, encoder, tokens, kind, question):
    asked, said = {"tokens": tokens} | question, []
    for where in (address, here):
        with Client(where, encoder) as client, pytest.raises(kind) as caught:
            client.search(**asked)
        assert type(caught.value) is kind
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("ids", [{"token_space": "ts-0"}, {"encoder_id": "enc-0"}])
def test_a_wrong_model_is_refused_with_both_ids(address, here, encoder, tokens, ids):
    right = {"token_space": encoder.manifest.token_space, "encoder_id": encoder.encoder_id}
    said = []
    for where in (address, here):
        with Client(where, **right | ids) as client, pytest.raises(SpaceMismatch) as caught:
            client.search(tokens, WORDS)
        said.append(str(caught.value))
    assert said[0] == said[1]
    (name, wrong) = next(iter(ids.items()))
    assert wrong in said[0]
    assert right[name] in said[0]


def test_it_describes_itself_as_the_server_does(address, here, encoder):
    with Client(address, encoder) as there, Client(here, encoder) as client:
        wanted, came = there.describe(), client.describe()
    for reply in (wanted, came):
        for clock in {"unix_ms"} & {field.name for field in reply.DESCRIPTOR.fields}:
            reply.ClearField(clock)
    assert came == wanted


def test_threads_and_tasks_share_one(here, encoder, tokens):
    async def many() -> list[Answer]:
        async with AsyncClient(here, encoder) as client:
            return await asyncio.gather(*(client.search(tokens, WORDS) for _ in range(20)))

    with Client(here, encoder) as client, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: client.search(tokens, WORDS), range(20)))
    assert len({tuple(hit.id for hit in answer.hits) for answer in (*answers, *asyncio.run(many()))}) == 1


def test_a_client_leaves_it_open_and_it_lets_go_when_closed(gallery, encoder):
    with open_gallery(gallery) as opened:
        for _ in range(2):
            with Client(opened, encoder) as client:
                assert client.search(None, "red").hits
        assert str(gallery) in client.server
    EmbeddedGallery.open(gallery).close()


# --- what can be wrong


def test_a_gallery_that_is_open_elsewhere(small_world, address):
    with pytest.raises(GalleryError, match=rf"is open in another process \(pid {os.getpid()}\)"):
        open_gallery(small_world / "gallery")


def test_no_gallery_there(tmp_path):
    with pytest.raises(GalleryError, match="make one with `pocketlens-cloud index"):
        open_gallery(tmp_path)


def test_a_bundle_with_the_devices_half_alone(gallery, tmp_path):
    shutil.copytree(default_bundle() / "edge", tmp_path / "bundle" / "edge")
    with pytest.raises(BadBundle, match="holds the edge half of a bundle alone; the cloud half is needed"):
        open_gallery(gallery, tmp_path / "bundle")
    with pytest.raises(BadBundle, match="is the edge half of a bundle; the cloud half is needed"):
        open_gallery(gallery, tmp_path / "bundle" / "edge")
    open_gallery(gallery).close()  # it was let go


def test_a_gallery_of_another_space(gallery, tmp_path):
    shutil.copytree(default_bundle(), tmp_path / "bundle")
    manifest = read_cloud(tmp_path / "bundle")
    write(replace(manifest, gallery_space="gs-ffffffffffffffff"), tmp_path / "bundle" / "cloud")
    with pytest.raises(SpaceMismatch, match=rf"{manifest.gallery_space}.*gs-ffffffffffffffff.*index again"):
        open_gallery(gallery, tmp_path / "bundle")
    open_gallery(gallery).close()


def test_an_empty_gallery(tmp_path):
    manifest = read_cloud(default_bundle())
    EmbeddedGallery.create(
        tmp_path / "empty", dim=manifest.dim, vectors=manifest.targets, gallery_space=manifest.gallery_space
    ).close()
    with pytest.raises(GalleryError, match="holds no pictures"):
        open_gallery(tmp_path / "empty")


def test_without_the_extra_it_is_said_what_to_install(gallery, monkeypatch):
    absent = EntryPoint("gallery", "no_such_library.local:open_local", local.ENTRY_POINT)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [absent])
    with pytest.raises(GalleryError, match=r"needs no_such_library, .*pip install 'pocketlens\[cloud\]'"):
        open_gallery(gallery)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    with pytest.raises(GalleryError, match=r"cannot search on the device itself.*pip install 'pocketlens\[cloud\]'"):
        open_gallery(gallery)


def test_pictures_indexed_later_are_found_the_next_time(small_world, tmp_path, encoder):
    pictures = sorted((small_world / "pictures").glob("*.jpg"))
    (tmp_path / "pictures").mkdir()
    shutil.copy(pictures[0], tmp_path / "pictures")
    generations = []
    for picture in (pictures[0], pictures[1]):
        shutil.copy(picture, tmp_path / "pictures")
        ingest.index(tmp_path / "pictures", tmp_path / "gallery", default_bundle())
        with open_gallery(tmp_path / "gallery") as opened, Client(opened, encoder) as client:
            answer = client.search(encoder.encode(picture), mode=Mode.ZERO_SHOT)
        assert picture.name in {hit.payload["file"] for hit in answer.hits}
        generations.append(answer.generation)
    assert len(set(generations)) == 2


# --- the command, and no network

# The kernel refuses the system call, whoever makes it: gRPC's core is not Python. BPF as in seccomp(2).
NO_SOCKETS = """
import ctypes, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def step(code, yes, no, value): return struct.pack("HBBI", code, yes, no, value)
refuse, allow = step(0x06, 0, 0, 0x50000 | 1), step(0x06, 0, 0, 0x7FFF0000)
program = step(0x20, 0, 0, 0) + step(0x15, 0, 1, {number}) + refuse + allow
held = ctypes.create_string_buffer(program, len(program))
class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(held))), 0, 0) == 0, ctypes.get_errno()
try: socket.socket()
except PermissionError: pass
else: raise AssertionError("sockets are not blocked")
"""
SOCKET = {"x86_64": 41, "aarch64": 198}  # number of the system call
ASK = """
import sys
from pocketlens_edge.cli import app
try: app(sys.argv[1:])
finally: print(*sys.modules, file=sys.stderr)
"""


def command(*arguments: object, prelude: str = "", path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`pocketlens-edge` in a process of its own, which tells on stderr what it has loaded."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*([str(path)] if path else []), *filter(None, sys.path)])}
    call = [sys.executable, "-c", prelude + ASK, *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, timeout=60, env=env)


@pytest.mark.skipif(platform.machine() not in SOCKET or sys.platform != "linux", reason="blocks sockets with seccomp")
def test_the_command_answers_with_sockets_blocked(gallery, small_world, installed, address, tmp_path):
    blocked = NO_SOCKETS.format(number=SOCKET[platform.machine()])
    question = ("search", small_world / "mug.jpg", "-t", WORDS, "--pictures", small_world / "pictures")
    offline = command(
        *question,
        "--local-gallery",
        gallery,
        "--sheet",
        tmp_path / "here.png",
        "--json",
        prelude=blocked,
        path=installed,
    )
    assert offline.returncode == 0, offline.stderr
    answer = json.loads(offline.stdout)
    assert answer["bytes"] == {"message": 0, "envelope_estimate": 0}
    asked = command(*question, "--server", address, "--sheet", tmp_path / "there.png", "--json")
    assert asked.returncode == 0, asked.stderr
    wanted = json.loads(asked.stdout)
    for told in (answer, wanted):
        told.pop("bytes"), told.pop("times_ms")
    assert answer == wanted
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()
    refused = command(*question, "--server", address, prelude=blocked)
    assert refused.returncode == 1, "a server cannot be asked without sockets"


def test_nothing_of_the_cloud_is_loaded_unless_asked_for(gallery, small_world, installed, address):
    cloud = {"pocketlens_cloud", "qdrant_edge", "tokenizers"}
    asked = command("search", "-t", WORDS, "--server", address, path=installed)
    assert asked.returncode == 0
    assert cloud.isdisjoint(asked.stderr.split())
    local_ = command("search", "-t", WORDS, "--local-gallery", gallery, path=installed)
    assert local_.returncode == 0
    assert cloud <= set(local_.stderr.split())
    assert "torch" not in local_.stderr.split()


@pytest.mark.parametrize("library", ["tokenizers", "qdrant_edge", "ftfy"])
def test_the_command_without_one_library_of_the_extra(gallery, installed, library):
    absent = f"import sys; sys.modules[{library!r}] = None\n"  # as if it were not installed
    ran = command("search", "-t", "red", "--local-gallery", gallery, "--json", prelude=absent, path=installed)
    assert ran.returncode == 1
    error = json.loads(ran.stdout)["error"]
    assert error["kind"] == "GalleryError"
    assert f"needs {library}, which is not installed: pip install 'pocketlens[cloud]'" in error["message"]


def test_the_command_says_that_nothing_was_sent(gallery, installed):
    ran = command("search", "-t", "a red mug", "--local-gallery", gallery, path=installed)
    assert "sent    nothing, the gallery is on this device; tuned" in ran.stdout
    assert "gallery check" in ran.stdout


def test_a_server_and_a_gallery_at_once_is_wrong_usage(gallery, installed):
    for also in (["--server", "127.0.0.1:1"], ["--tls"]):
        ran = command("search", "-t", "red", "--local-gallery", gallery, *also, path=installed)
        assert ran.returncode == 2
        assert "--local-gallery asks no server" in ran.stderr
