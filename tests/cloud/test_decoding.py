"""Decoding processes: the same pixels, no process left behind, and no picture that takes others with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pocketlens_cloud.indexing import decoding, decoding_worker
from pocketlens_cloud.indexing.decoding import InProcesses, InThreads
from pocketlens_cloud.indexing.ingest import index
from pocketlens_wire.errors import BadPicture, ServerFault
from pocketlens_wire.pictures import PictureSpec

SPEC = PictureSpec(side=16, fit="crop")


@pytest.fixture
def apart():
    decoder = InProcesses(SPEC)
    yield decoder
    decoder.close()


def is_alive(pid: int) -> bool:
    """A process that has ended may stay in the table until somebody asks for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_pixels_are_the_same_and_bad_pictures_say_why(apart, tmp_path, draw_picture):
    here = InThreads(SPEC)
    for seed in range(3):
        draw_picture(tmp_path / "a.png", seed, side=40 + seed)
        data = (tmp_path / "a.png").read_bytes()
        assert np.array_equal(apart.decode(data, "a.png"), here.decode(data, "a.png"))
    for bad in (b"", b"no picture", data[:100]):
        with pytest.raises(BadPicture) as told:
            here.decode(bad, "bäd.png")
        with pytest.raises(BadPicture) as came:
            apart.decode(bad, "bäd.png")
        assert str(came.value) == str(told.value)
    assert len(apart._children) == 1


def test_a_picture_that_kills_its_decoder_is_listed_and_the_others_go_on(toy, tmp_path, draw_picture, monkeypatch):
    for i in range(6):
        draw_picture(tmp_path / "pictures" / f"{i}.png", i)
    index(tmp_path / "pictures", tmp_path / "g", toy.bundle)
    for i in range(6):
        draw_picture(tmp_path / "pictures" / f"{i}.png", 10 + i)
    deadly = """
import os, pocketlens_cloud.indexing.decoding_worker as worker
whole = worker.open_picture
worker.open_picture = lambda data, name, near: os.abort() if name == '3.png' else whole(data, name=name, near=near)
"""
    monkeypatch.setattr(
        decoding, "_CHILD", decoding._CHILD.replace("from pocketlens", f"exec({deadly!r}); from pocketlens", 1)
    )
    report = index(tmp_path / "pictures", tmp_path / "g", toy.bundle, decode="processes", threads=2)
    assert (report.indexed, report.replaced, report.size) == (5, 5, 6)  # what is known of 3.png stays
    assert report.unreadable == [("3.png", "its decoder died (exit code -6)")]


def test_a_process_that_cannot_start_is_a_fault_and_not_a_bad_picture(apart, monkeypatch):
    monkeypatch.setattr(decoding, "_CHILD", "raise SystemExit(3)")
    with pytest.raises(ServerFault, match="--decode threads"):
        apart.decode(b"", "a.png")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_process_outlives_a_killed_parent(tmp_path, draw_picture):
    draw_picture(tmp_path / "a.png", 1)
    code = (
        "import sys; from pocketlens_cloud.indexing.decoding import InProcesses; "
        "from pocketlens_wire.pictures import PictureSpec; "
        "d = InProcesses(PictureSpec(side=16, fit='crop')); d.decode(open(sys.argv[1], 'rb').read(), 'a'); "
        "d._start(); print(*[c._process.pid for c in d._children], flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2 and all(map(is_alive, children))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(map(is_alive, children))


def test_the_decoding_process_stays_light():
    code = f"import sys, {decoding_worker.__name__}; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert loaded.isdisjoint({"onnxruntime", "qdrant_edge", "tokenizers", "torch", "typer"})
