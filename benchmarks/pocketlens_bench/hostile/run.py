"""The runner: a real server, each case against it, and whether the server is as it was.

Owns what stands around the cases: a gallery with payload of every kind, the server's process, one more that asks for
keys, an indexing of the hostile pictures, the device's encoder. Called by cli/hostile.py."""

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import cache
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, Final

import numpy as np
from PIL import Image
from pocketlens_cloud.indexing import ingest
from pocketlens_cloud.serving import keys
from pocketlens_edge.encoder import Encoder

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.hostile import CHECKLIST
from pocketlens_bench.hostile.case import ANSWERED, BUSY, NO_PICTURE, Case, Lacking
from pocketlens_bench.hostile.pictures import FILES, LEFT_ALONE
from pocketlens_bench.hostile.target import AGAIN_S, TRIES, Doors, Harmed, Indexing, Target
from pocketlens_bench.server import program, serving
from pocketlens_bench.world import OnProgress, silently

PICTURES: Final = 40
INDEXING_S: Final = 300
HONESTY: Final = (
    "A case passes if it ends in one of the endings that its list names and the server is unharmed: its process runs, "
    "health says SERVING, and the good question is answered byte for byte as before, but for times and generation. "
    "Inputs that nobody thought of are not in it; `make fuzz` looks for those."
)


def tried(
    bundle: Path, *, against: str | None = None, only: Sequence[str] = (), on_progress: OnProgress = silently
) -> dict[str, Any]:
    """Everything `pocketlens-bench hostile` says, as one JSON object. only: ids of cases; none: all.

    against: HOST:PORT of a server that runs; None starts some. Raises ServerFault if one does not come up, and the
    PocketlensError of a bundle that cannot be used."""
    load, began = load_now(), perf_counter()
    chosen = [each for each in CHECKLIST if not only or each.id in only]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        targets = _those_running(stack, against) if against else _started(stack, bundle, chosen, on_progress)
        for place, each in enumerate(chosen):
            on_progress("cases", place, len(chosen))
            rows.append(_row(each, targets["keys" if each.kind == "auth" and "keys" in targets else "plain"]))
            if rows[-1]["harm"]:
                break
    return {
        "benchmark": "hostile",
        "passed": sum(row["passed"] for row in rows),
        "failed": [row["id"] for row in rows if not row["passed"] and not row["left_out"]],
        "not_tried": [each.id for each in chosen[len(rows) :]],
        "rows": rows,
        "honesty": HONESTY,
        "conditions": conditions(None if against else bundle, load=load, seconds=round(perf_counter() - began, 1)),
    }


def _row(each: Case, target: Target) -> dict[str, Any]:
    came, harm, lacking = "", "", ""
    began = perf_counter()
    try:
        with target.unharmed():
            try:
                came = _acted(each, target)
            except Lacking as error:
                lacking = str(error)
            except Harmed:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the other cases are tried
                came = f"{type(error).__name__}: {error}"
    except Harmed as error:
        harm = str(error)
    return {
        "id": each.id, "kind": each.kind, "does": each.does, "ends": list(each.ends), "came": came, "harm": harm,
        "left_out": lacking, "passed": came in each.ends and not harm, "seconds": round(perf_counter() - began, 3),
    }  # fmt: skip


def _acted(each: Case, target: Target) -> str:
    """How it ended; a case that a busy server turned away tells nothing, and is tried again."""
    came = ""
    for _ in range(TRIES):
        if BUSY not in (came := each.act(target)):
            break
        sleep(AGAIN_S)
    return came


# --- servers


def _those_running(stack: ExitStack, against: str) -> dict[str, Target]:
    target = Target(address=against)
    stack.callback(target.close)
    return {"plain": target}


def _started(stack: ExitStack, bundle: Path, chosen: Sequence[Case], on_progress: OnProgress) -> dict[str, Target]:
    """A server that may be written, and where a case wants one, another that asks for keys."""
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketlens-hostile-")))
    on_progress("start", 0, 1)
    _draw(home / "pictures")
    ingest.index(home / "pictures", home / "gallery", bundle, threads=1)
    made: dict[str, Target] = {}
    kinds = {each.kind for each in chosen}
    if "auth" in kinds:
        shutil.copytree(home / "gallery", home / "gallery-of-keys", ignore=shutil.ignore_patterns("gallery.lock"))
        doors = _make_keys(home / "keys.json")
        more = ["--keys", doors.file, "--writable"]
        running = stack.enter_context(serving(bundle, home / "gallery-of-keys", threads=1, more=more))
        made["keys"] = Target(address=running.address, is_alive=running.is_alive, doors=doors)
    if kinds - {"auth"}:
        page = _free_address() if _page_is_built() else None
        more = ["--writable", *(["--web", page] if page else [])]
        running = stack.enter_context(serving(bundle, home / "gallery", threads=1, more=more))
        made["plain"] = Target(
            address=running.address, is_alive=running.is_alive, web=page,
            device=_device(bundle), indexing=cache(lambda: _indexed(home, bundle)),
        )  # fmt: skip
    for each in made.values():
        stack.callback(each.close)
    return made


def _draw(folder: Path) -> None:
    """Small pictures, with payload of every kind."""
    folder.mkdir()
    with (folder / "payload.jsonl").open("w", encoding="utf-8") as lines:
        for n in range(PICTURES):
            pixels = np.random.default_rng(n).integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{n}.png")
            payload = {
                "colour": ("red", "green", "blue")[n % 3], "count": n % 4, "price": n / 4 + 0.125, "sold": n % 2 == 0,
                "at": {"lat": n - 20.0, "lon": n * 2.0}, "tags": ["new", f"t{n % 5}"],
                "made": f"2026-01-{n % 28 + 1:02}T00:00:00Z",
            }  # fmt: skip
            lines.write(json.dumps({"file": f"{n}.png", "payload": payload}) + "\n")


def _make_keys(file: Path) -> Doors:
    good, _ = keys.new(file, ["search"])
    index, _ = keys.new(file, ["index"])
    revoked, held = keys.new(file, ["search"])
    keys.revoke(file, held.id)
    expired, _ = keys.new(file, ["search"], valid_for=timedelta(seconds=-60))
    return Doors(good=good, index=index, revoked=revoked, expired=expired, file=file)


def _page_is_built() -> bool:
    from pocketlens_cloud.serving.gateway import PAGE

    return (PAGE / "index.html").is_file()


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"


# --- what else takes pictures


def _device(bundle: Path) -> Callable[[Path], object]:
    """What a device does with a picture; its encoder is loaded with the first."""
    encoder = cache(lambda: Encoder.load(bundle, threads=1))
    return lambda picture: encoder().encode(picture)


def _indexed(home: Path, bundle: Path) -> Indexing:
    """The hostile files in a folder, and what `pocketlens-cloud index` makes of it, a process of its own."""
    folder, gallery = home / "hostile", home / "indexed"
    folder.mkdir()
    for file in FILES:
        file.put(folder)
    command = [*program(), "index", folder, "--gallery", gallery, "--bundle", bundle, "--json", "--threads", "1",
               "--allow-unreadable", str(len(FILES))]  # fmt: skip
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=INDEXING_S, check=False)
    if ran.returncode != 0:
        raise Harmed(f"indexing left with {ran.returncode}: {' '.join(ran.stderr.split())[-300:]}")
    unreadable = {name for name, _ in json.loads(ran.stdout)["unreadable"]}
    lines = (gallery / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    taken = {json.loads(line)["file"] for line in lines} - unreadable

    def ended(name: str) -> str:
        return NO_PICTURE if name in unreadable else ANSWERED if name in taken else LEFT_ALONE

    return Indexing(folder, ended)
