"""All cells, all seeds, some processes at a time; then means and intervals. Killed, it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import torch
from pocketlens_wire.errors import PocketlensError

from pocketlens_bench.ablation.cells import CELLS, Cell
from pocketlens_bench.ablation.exam import SIZES
from pocketlens_bench.ablation.summary import rows_of
from pocketlens_bench.ablation.trial import Trials, attempt, folder_of, prepare
from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.world import OnProgress, silently

FIRST_SEED = 1
SETTINGS = "settings.json"
HONESTY = (
    "Steps are fewer than the committed bundle's, so that every cell can be trained with several seeds: differences "
    "between cells are what counts. The interval is over seeds (Student's t), the questions are the same for all; "
    "differences pair seeds; all seeds share one teacher and one set. Numbers of training-free rows are chosen on a "
    "validation set of other questions. The "
    "sample world teaches composition by text-side edit supervision, so nothing here is zero-shot composed retrieval "
    "in the papers' sense; SEARLE and LinCIR are adapted (training/pocketlens_training/baselines.py says how) and "
    "trained here on this world's pictures and captions alone."
)
STOPS_ONE = (ArithmeticError, OSError, RuntimeError, ValueError)  # a trial, not the others
Ask = tuple[Cell, int]


class OtherTrials(PocketlensError):
    """The folder of trials holds some that were made otherwise."""


def measure(
    trials: Trials, cells: Sequence[Cell], *, seeds: int, jobs: int, on_progress: OnProgress = silently
) -> dict[str, Any]:
    """Everything `pocketlens-bench ablation` says, as one JSON object. cells: as `chosen` gives them, the base first.

    Trials that fail are named and left out. Raises OtherTrials, and PocketlensError when no base student could be
    made."""
    load = load_now()
    _claim(trials)
    all_seeds = range(FIRST_SEED, FIRST_SEED + seeds)
    asks = [(cell, seed) for seed in all_seeds for cell in cells]
    bases = [ask for ask in asks if ask[0] is CELLS[0]]
    found: dict[tuple[str, int], dict[str, Any]] = {}
    left_out: list[str] = []
    if jobs > 1 and any(not (folder_of(trials, *ask) / "figures.json").exists() for ask in asks):
        # Or all that begin together would compute the same.
        on_progress("teacher's vectors and maps", 0, 1)
        with _pool() as one:
            one.submit(prepare, trials, jobs * trials.threads).result()
    for stage, some in (("base students", bases), ("trials", [ask for ask in asks if ask not in bases])):
        on_progress(stage, 0, len(some))
        for done, (ask, came) in enumerate(_attempted(trials, some, jobs), 1):
            if isinstance(came, Exception):
                left_out.append(_failed(trials, ask, came))
            else:
                found[ask[0].key, ask[1]] = came
            on_progress(stage, done, len(some))
        if not found:
            raise PocketlensError(f"{trials.work}: no base student could be trained; {'; '.join(left_out)}")
    card = conditions(
        None, load=load, seeds={"trained with": ", ".join(map(str, all_seeds))},
        sizes={
            **{f"{name} of a student": value for name, value in trials.base.items()},
            "steps of heads": trials.head_steps,
            **{f"{key} questions/pictures": list(size) for key, size in SIZES.items()},
        },
        threads={"each trial": trials.threads, "trials at a time": jobs},
        teacher=json.loads((trials.run / "teacher" / "teacher.json").read_text(encoding="utf-8")),
    )  # fmt: skip
    card["versions"]["torch"] = torch.__version__
    return {
        "benchmark": "ablation",
        "set": "sample",
        "tables": [{"key": "ablation", "title": "Ablation on the sample world", "rows": list(rows_of(cells, found))}],
        "left_out": sorted(left_out),
        "honesty": HONESTY,
        "conditions": card,
    }


def _claim(trials: Trials) -> None:
    """Refuse a folder whose trials had other steps, another teacher or set: their figures would be taken for these."""
    names = ("pairs.jsonl", "told.jsonl", "sketches.jsonl", "triplets.jsonl")
    files = [trials.run / "teacher" / "teacher.safetensors", *(trials.run / "set" / name for name in names)]
    ours = {
        **trials.base,
        "head_steps": trials.head_steps,
        "run": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16],
    }
    kept = trials.work / SETTINGS
    if not kept.exists():
        trials.work.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")
        return
    theirs = json.loads(kept.read_text(encoding="utf-8"))
    if differing := [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]:
        said = ", ".join(f"{key} {theirs.get(key)}, now {ours.get(key)}" for key in differing)
        raise OtherTrials(f"{trials.work}: holds trials made otherwise ({said}); take another folder for --work")


def _attempted(trials: Trials, asks: Sequence[Ask], jobs: int) -> Iterator[tuple[Ask, dict[str, Any] | Exception]]:
    """Each trial's figures, or what stopped it, as they are done."""
    if jobs == 1:
        for ask in asks:
            yield ask, _or_error(partial(attempt, trials, *ask))
        return
    threads = ThreadPoolExecutor(jobs)
    try:
        work = {threads.submit(_alone, trials, ask): ask for ask in asks}
        for job in as_completed(work):
            yield work[job], _or_error(job.result)
    finally:  # one that was stopped begins no more
        threads.shutdown(cancel_futures=True)


def _alone(trials: Trials, ask: Ask) -> dict[str, Any]:
    """A pool of its own: a trial that is killed, for want of memory perhaps, breaks no other's."""
    with _pool() as pool:
        return pool.submit(attempt, trials, *ask).result()


def _pool() -> ProcessPoolExecutor:
    """One process for each trial: what torch keeps is given back, and a trial cannot disturb the next."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_the_driver)


def _end_with_the_driver() -> None:
    """A driver that was killed cannot tell its trials; they would train on beside those of the next."""

    def wait() -> None:
        if (driver := parent_process()) is not None:
            driver.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _or_error(made: Callable[[], dict[str, Any]]) -> dict[str, Any] | Exception:
    """Raises what is no matter of one trial alone: a crooked set, Ctrl-C."""
    try:
        return made()
    except STOPS_ONE as error:
        return error


def _failed(trials: Trials, ask: Ask, error: Exception) -> str:
    """Keep how it failed in the trial's folder; a sentence that names the trial."""
    cell, seed = ask
    folder = folder_of(trials, cell, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"{cell.group} / {cell.name}, seed {seed}: {type(error).__name__}, see error.txt in {folder.name}"
