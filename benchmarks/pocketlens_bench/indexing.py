"""Pictures a second of indexing beside the bare image tower, and what becomes of an indexing that is killed.

Owns the pictures, the order of the measurements (the bare tower before and after each indexing, since a machine's pace
drifts), and what is compared after kills. Each measurement runs in a process of its own, so that its memory is its own.
Called by cli/indexing.py."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from PIL import Image
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Search
from pocketlens_cloud.indexing import ingest
from pocketlens_samples.queries import Picture, composed_set
from pocketlens_wire.errors import ServerFault

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.world import JPEG_QUALITY, OnProgress, silently

WAYS = ("threads", "processes")
KILLED_PICTURES = 400
KILL_WITHIN_S = 6.0  # of a run's start; it may be over by then
COSINE = 1e-5  # by which scores of equal galleries may differ: the tower sums in another order in other batches
HONESTY = (
    "A rate is counted from the first batch that is through to the last, so it leaves out loading the model and "
    "building the search index; `whole` holds all of it. The bare tower runs the same batch with the same threads on "
    "pixels that lie ready, before and after each indexing; the share is against the mean of these two. Reading, "
    "decoding and the engine's work take their processor time from the same processors as the tower. Processor time a "
    "picture, of the whole run with its loading, is what others' work on the machine disturbs least."
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """pictures: to index, each a JPEG of width x height; rounds: how often each way is measured."""

    pictures: int = 2048
    width: int = 640
    height: int = 480
    rounds: int = 2


FULL = Sizes()
QUICK = Sizes(pictures=320, rounds=1)


def measure(
    bundle: Path,
    *,
    batch: int = 64,
    threads: int | None = None,
    precision: str = "fp32",
    ways: Sequence[str] = WAYS,
    sizes: Sizes = FULL,
    seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench indexing` says, as one JSON object; seconds, pictures a second, 1e6 bytes.

    Raises the PocketlensError of whatever part fails."""
    load, began = load_now(), perf_counter()
    threads = threads or os.cpu_count() or 1
    asked = {"bundle": str(bundle), "batch": batch, "threads": threads, "precision": precision}
    rows, bare = [], []
    steps = 2 * len(ways) * sizes.rounds + 1
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as home:
        draw(Path(home) / "pictures", sizes, seed, on_progress)
        asked |= {"folder": f"{home}/pictures", "pictures": sizes.pictures}
        bare.append(_alone({**asked, "what": "bare"}))
        for turn in range(sizes.rounds):
            for way in ways:
                on_progress("measure", 2 * len(rows) + 1, steps)
                gallery = f"{home}/{way}-{turn}"
                found = _alone({**asked, "what": "index", "decode": way, "gallery": gallery})
                bare.append(_alone({**asked, "what": "bare"}))
                around = {f"bare_{of}": (bare[-2][of] + bare[-1][of]) / 2 for of in ("per_s", "cpu_ms")}
                rows.append({"decode": way, **found, **around, "share": found["per_s"] / around["bare_per_s"]})
    return {
        "benchmark": "indexing",
        "set": f"{sizes.width} x {sizes.height}",
        "precision": precision,
        "bare_per_s": [each["per_s"] for each in bare],
        "rows": rows,
        "honesty": HONESTY,
        "conditions": conditions(
            bundle,
            load=load,
            load_at_end=load_now(),
            seconds=round(perf_counter() - began, 1),
            threads={"of the tower, and pictures decoded at once": threads},
            seeds={"pictures": seed},
            sizes={**asdict(sizes), "batch": batch},
        ),
    }


def draw(folder: Path, sizes: Sizes, seed: int, on_progress: OnProgress) -> None:
    """Pictures of the sample world, enlarged; no two of the same bytes."""
    folder.mkdir()
    drawn = composed_set(queries=5, gallery=max(20, sizes.pictures), seed=seed).gallery[: sizes.pictures]
    for number, picture in enumerate(drawn):
        _enlarged(picture, sizes).save(folder / f"{number:06d}.jpg", "JPEG", quality=JPEG_QUALITY)
        on_progress("draw", number + 1, len(drawn))


def _enlarged(picture: Picture, sizes: Sizes) -> Image.Image:
    whole = Image.fromarray(picture.pixels())
    return whole.resize((sizes.width, sizes.height), Image.Resampling.BICUBIC)


def _alone(asked: dict[str, Any]) -> dict[str, Any]:
    """One measurement in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServerFault(f"indexing could not be measured: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


CHILD = """
import json, resource, sys
from pathlib import Path
from time import perf_counter
import numpy as np
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.indexing import ingest
from pocketlens_cloud.towers import ImageTower
asked = json.load(sys.stdin)
batch, bundle = asked["batch"], Path(asked["bundle"])
began, marks = perf_counter(), []
before = sum(getattr(resource.getrusage(resource.RUSAGE_SELF), each) for each in ("ru_utime", "ru_stime"))
if asked["what"] == "bare":
    half, manifest = open_cloud_half(bundle)
    tower = ImageTower(half, manifest, threads=asked["threads"], precision=asked["precision"])
    side = manifest.picture.side
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    tower.vectors(pixels)
    for done in range(0, asked["pictures"], batch):
        marks.append((perf_counter(), done))
        tower.vectors(pixels)
    marks.append((perf_counter(), done + batch))
    told = {}
else:
    report = ingest.index(
        Path(asked["folder"]), Path(asked["gallery"]), bundle, batch=batch, threads=asked["threads"],
        precision=asked["precision"], decode=asked["decode"],
        on_progress=lambda done, total: marks.append((perf_counter(), done)),
    )
    assert report.indexed == asked["pictures"] and not report.unreadable, report
    told = {"stages_s": report.seconds}
whole = perf_counter() - began
used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(each.ru_utime + each.ru_stime for each in used) - before
rate = (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
own, others = (each.ru_maxrss for each in used)
unit = 1 if sys.platform == "darwin" else 1024
if Path("/proc/self/status").exists():  # on Linux a process's ru_maxrss begins with that of its parent
    own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"per_s": rate, "whole_s": whole, "memory_mb": own * unit / 1e6,
                  "cpu_ms": 1e3 * cpu / asked["pictures"],
                  "largest_decoder_mb": others * unit / 1e6, **told}))
"""


# --- killed


def kill(
    bundle: Path,
    seconds: float,
    *,
    pictures: int = KILLED_PICTURES,
    within_s: float = KILL_WITHIN_S,
    seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Kill an indexing at random moments, again and again, for so long; then let it finish and count `faults`.

    within_s: the longest time from a run's start to its kill. Raises ServerFault for a run that fails by itself."""
    draws, ends, kills, runs, finished = random.Random(seed), monotonic() + seconds, 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as home:
        folder, gallery, undisturbed = (Path(home) / name for name in ("pictures", "gallery", "undisturbed"))
        draw(folder, Sizes(pictures=pictures, width=96, height=96), seed, on_progress)
        ingest.index(folder, undisturbed, bundle)
        while (left := ends - monotonic()) > 0:
            on_progress("kill", round(seconds - left), round(seconds))
            killed = _kill_once(bundle, folder, gallery, draws, within_s)
            kills, runs, finished = kills + killed, runs + 1, finished + (not killed)
            if not killed:  # it came to its end
                _change(folder, draws)
                ingest.index(folder, undisturbed, bundle)
        ingest.index(folder, gallery, bundle)
        wanted = {ingest.content_id(file.read_bytes()): file.name for file in folder.iterdir()}
        found = faults(gallery, undisturbed, wanted)
    return {
        "seconds": seconds,
        "runs": runs,
        "kills": kills,
        "finished": finished,
        "pictures": pictures,
        "faults": found,
    }


def _kill_once(bundle: Path, folder: Path, gallery: Path, draws: random.Random, within_s: float) -> bool:
    """Whether a run was killed before its end."""
    code = (
        "import sys; from pathlib import Path; from pocketlens_cloud.indexing.ingest import index; "
        "index(*map(Path, sys.argv[1:4]), batch=8, decode=sys.argv[4])"
    )
    command = [sys.executable, "-c", code, str(folder), str(gallery), str(bundle), draws.choice(WAYS)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        _, told = run.communicate(timeout=draws.uniform(0, within_s))
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
        run.communicate()
        return True
    if run.returncode:
        raise ServerFault(f"a run after a kill failed: {told.decode(errors='replace').strip()[-300:]}")
    return False


def _change(folder: Path, draws: random.Random) -> None:
    """A quarter of the files get other pictures, so that there is something to do again."""
    files = sorted(folder.iterdir())
    for file in draws.sample(files, len(files) // 4):
        pixels = np.random.default_rng(draws.randrange(2**32)).integers(0, 256, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)


def faults(gallery: Path, undisturbed: Path, wanted: dict[str, str]) -> dict[str, int]:
    """How many pictures of `gallery` are not as they should be, by what is wrong: it is to hold those `wanted` (files
    by id), each once, with the vectors that `undisturbed` has."""
    held, other = _everything(gallery), _everything(undisturbed)
    ids, found = [point for point, _ in held.listed], Counter[str]()
    found["missing"] = len(set(wanted) - set(ids))
    found["foreign"] = len(set(ids) - set(wanted))
    found["twice"] = len(ids) - len(set(ids)) + abs(held.size - len(ids))
    found["with another payload"] = sum(payload != {"file": wanted.get(point)} for point, payload in held.listed)
    for name, pairs in held.vectors.items():
        there = dict(other.vectors[name])
        found["twice"] += len(pairs) - len(dict(pairs))
        found["listed and not found"] += len(set(ids) - set(dict(pairs)))
        found["with a vector of zeros"] += sum(not vector.any() for _, vector in pairs)
        found["with another vector"] += sum(
            point in there and not float(vector @ there[point]) >= 1 - COSINE for point, vector in pairs
        )
    return dict(found)


def compare(gallery: Path, undisturbed: Path, wanted: dict[str, str]) -> None:
    """Raise ServerFault if `faults` finds any."""
    if wrong := {name: count for name, count in faults(gallery, undisturbed, wanted).items() if count}:
        raise ServerFault(f"of {len(wanted)} pictures: {', '.join(f'{many} {name}' for name, many in wrong.items())}")


@dataclass(frozen=True)
class _Held:
    """What a gallery says it has: payload by id as listed, and what a search for everything finds by vector name."""

    size: int
    listed: list[tuple[str, dict[str, Any]]]
    vectors: dict[str, list[tuple[str, Any]]]


def _everything(path: Path) -> _Held:
    with EmbeddedGallery.open(path) as gallery:
        if not gallery.settled:
            raise ServerFault(f"{path.name} is not settled")
        listed = [(point, dict(payload)) for point, payload in gallery.payloads()]
        anything, vectors = np.eye(1, gallery.dim, dtype=np.float32)[0], {}
        for name in gallery.vectors:
            search = Search(vector=anything, name=name, top=2 * len(listed) + 1, with_vectors=True, exact=True)
            vectors[name] = [(hit.id, hit.vector) for hit in gallery.search(search)]
        return _Held(gallery.size, listed, vectors)
