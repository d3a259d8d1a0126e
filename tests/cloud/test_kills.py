"""kill -9 anywhere, whatever the source and wherever it decodes: nothing lost, nothing foreign, nothing twice."""

import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Search
from pocketlens_cloud.indexing.ingest import content_id, index
from pocketlens_cloud.indexing.sources import open_source

PICTURES = 90
KILLS = 2
COSINE = 1e-5
CODE = (
    "import sys; from pathlib import Path; from pocketlens_cloud.indexing.ingest import index; "
    "where, gallery, bundle, decode = sys.argv[1:]; "
    "index(where, Path(gallery), Path(bundle), batch=4, decode=decode, threads=2, "
    "on_progress=lambda done, total: print(done, flush=True))"
)


def everything(path: Path) -> dict[str, tuple[dict, dict[str, np.ndarray]]]:
    """Payload and vectors of every picture by id; each is listed once and found once."""
    with EmbeddedGallery.open(path) as gallery:
        assert gallery.settled
        points = list(gallery.payloads())
        held = {point: (payload, {}) for point, payload in points}
        assert len(held) == len(points) == gallery.size
        anything = np.eye(1, gallery.dim, dtype=np.float32)[0]
        for name in gallery.vectors:
            hits = gallery.search(
                Search(vector=anything, name=name, top=2 * len(points), with_vectors=True, exact=True)
            )
            assert sorted(hit.id for hit in hits) == sorted(held)
            for hit in hits:
                held[hit.id][1][name] = hit.vector
        return held


def kill_at(source: str, gallery: Path, bundle: Path, decode: str, done: int) -> bool:
    """Index, and kill the process once it says that so many pictures are done (0: at once); whether it was killed."""
    command = [sys.executable, "-c", CODE, source, str(gallery), str(bundle), decode]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout and run.stderr
    for line in run.stdout if done else ():
        if int(line) >= done:
            break
    run.kill()
    told = run.communicate()[1]
    assert run.returncode in (0, -9), told
    return run.returncode == -9


@pytest.mark.parametrize(("kind", "decode"), [("folder", "processes"), ("shards", "threads"), ("store", "none")])
def test_what_was_killed_ends_like_what_was_not(toy, tmp_path, draw_picture, kind, decode):
    draws = random.Random(f"{kind} {decode}")
    folder = tmp_path / "pictures"
    for i in range(PICTURES):
        draw_picture(folder / f"{i:02d}.png", i)
    source = str(folder)
    if kind == "shards":
        for half in (0, 1):
            with tarfile.open(tmp_path / f"{half}.tar", "w") as tar:
                for file in sorted(folder.iterdir())[half::2]:
                    tar.add(file, file.name)
        source = f"{tmp_path}/*.tar"
    elif kind == "store":  # a store that a process can see: files through fsspec
        pytest.importorskip("fsspec")
        source, decode = f"file://{folder}", "threads"
    killed = sum(
        kill_at(source, tmp_path / "g", toy.bundle, decode, done)
        for done in sorted(draws.sample(range(0, PICTURES * 2 // 3, 4), KILLS))
    )
    assert killed >= KILLS - 1
    index(source, tmp_path / "g", toy.bundle)
    index(source, tmp_path / "undisturbed", toy.bundle)
    found, wanted = everything(tmp_path / "g"), everything(tmp_path / "undisturbed")
    origin = open_source(source)
    assert {point: payload for point, (payload, _) in found.items()} == {
        content_id(origin.read(name)): {"file": name} for name in origin.names()
    }
    for point, (_, vectors) in found.items():
        for name, vector in wanted[point][1].items():
            assert vectors[name] @ vector > 1 - COSINE
