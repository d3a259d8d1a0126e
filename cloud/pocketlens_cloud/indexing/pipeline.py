"""Reading and decoding, the image tower, and writing, all at the same time, on this machine.

Owns the overlap and its bounds: at most two batches of pictures are ahead of the tower, at most one is being written
behind it."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.pictures import PictureSpec

from pocketlens_cloud.indexing.decoding import decoder
from pocketlens_cloud.indexing.looking import Clock, Looker, Seen
from pocketlens_cloud.indexing.run import Batch, Run
from pocketlens_cloud.towers import ImageTower

AHEAD: Final = 2  # batches of pictures that may wait for the tower
LOOKS_A_WRITE: Final = 16  # batches of pictures that need no tower before the journal is written

Vectors = Mapping[str, NDArray[np.float32]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def local_looks(
    looker: Looker, files: Sequence[str], spec: PictureSpec, *, batch: int, hands: int, how: str
) -> Iterator[Iterator[Seen]]:
    """Looks at all files, in their order. `hands`: at once; `how`: they decode, "threads" or "processes"."""
    with closing(decoder(how, spec)) as decoding:
        pool = ThreadPoolExecutor(hands, "look")
        try:
            yield _ahead(pool, lambda file: looker.look(file, decoding), files, AHEAD * batch)
        finally:
            pool.shutdown(cancel_futures=True)  # whoever presses Ctrl-C does not wait for what was only queued


def process(
    run: Run, looks: Iterable[Seen], tower: Callable[[], ImageTower], *, batch: int, clock: Clock,
    on_done: Callable[[int], None],
) -> None:  # fmt: skip
    """Decide, embed and write, batch by batch. `on_done` hears how many pictures were dealt with."""
    done = 0
    with ThreadPoolExecutor(1, "write") as writer:
        written: Future[None] | None = None
        for held in _batches(run, looks, batch, clock):
            vectors = _vectors(held.fresh, tower, clock)
            began = time.perf_counter()
            if written:
                written.result()
            clock.add("waiting for the gallery", began)
            written = writer.submit(_write, run, held, vectors, clock)
            done += held.looked_at
            on_done(done)
        if written:
            written.result()


def _write(run: Run, held: Batch, vectors: Vectors, clock: Clock) -> None:
    began = time.perf_counter()
    run.write(held, vectors)
    clock.add("writing", began)


def _batches(run: Run, looks: Iterable[Seen], size: int, clock: Clock) -> Iterator[Batch]:
    """Full batches for the tower, whatever lies between new pictures."""
    held, began = Batch(), time.perf_counter()
    for seen in looks:
        run.take(seen, held)
        if len(held.fresh) == size or held.looked_at == LOOKS_A_WRITE * size:
            clock.add("waiting for pictures", began)
            yield held
            held, began = Batch(), time.perf_counter()
    clock.add("waiting for pictures", began)
    if held.looked_at:
        yield held


def _vectors(fresh: Sequence[Seen], tower: Callable[[], ImageTower], clock: Clock) -> Vectors:
    """(len(fresh), dim) by name; the tower is loaded when the first picture needs it."""
    if not fresh:
        return {}
    ready = [seen.vectors for seen in fresh if seen.vectors]
    if len(ready) == len(fresh):
        return {name: np.stack([each[name] for each in ready]) for name in ready[0]}
    loaded = tower()
    began = time.perf_counter()
    vectors = loaded.vectors(np.stack([seen.pixels for seen in fresh if seen.pixels is not None]))
    clock.add("image tower", began)
    return vectors


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Sequence[_Item], ahead: int
) -> Iterator[_Result]:
    """Results of `work` in the order of `items`, at most `ahead` of them in the making."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
