"""The same looks as pipeline.py's, made by the machines of a Ray cluster: read, hashed, decoded and embedded there.

The only file that imports ray (extra `ray`). Deciding and writing stay with the one process that holds gallery and
journal, so a run with Ray and one without leave the same gallery. Every machine must see the source and the bundle
under the same path."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadPicture, GalleryError, ServerFault
from pocketlens_wire.manifest import read_cloud

from pocketlens_cloud.indexing.decoding import InThreads
from pocketlens_cloud.indexing.journal import Entry
from pocketlens_cloud.indexing.looking import NOT_UTF8, Looker, Seen
from pocketlens_cloud.indexing.names import printable
from pocketlens_cloud.towers import ImageTower

VECTOR: Final = "vector:"  # before the names of columns that hold vectors

Columns = dict[str, Any]


@contextmanager
def ray_looks(
    looker: Looker, files: Sequence[str], half: Path, *, batch: int, threads: int, precision: str
) -> Iterator[Iterator[Seen]]:
    """Looks at all files, in their order, with vectors in place of pixels.

    Joins the cluster that RAY_ADDRESS names, or this machine alone, once there is something to read. Raises
    GalleryError where ray is not installed, ServerFault where the cluster fails."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise GalleryError("--engine ray needs Ray: pip install 'pocketlens[ray]'") from error
    unchanged, asked = _sorted_out(looker, files)
    joined = bool(asked) and not ray.is_initialized()
    if joined:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        far = _far(ray, looker, asked, half.resolve(), batch, threads, precision) if asked else iter(())
        yield (unchanged[file] if file in unchanged else next(far) for file in files)
    except ray.exceptions.RayError as error:
        raise ServerFault(f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if joined:
            ray.shutdown()


def _sorted_out(looker: Looker, files: Sequence[str]) -> tuple[dict[str, Seen], list[str]]:
    """Looks that the journal spares, and the files the cluster must look at."""
    unchanged: dict[str, Seen] = {}
    for file in files:
        try:
            seen = looker.unchanged(file) if printable(file) == file else Seen(file=file, trouble=NOT_UTF8)
        except BadPicture as error:
            seen = Seen(file=file, trouble=str(error))
        if seen:
            unchanged[file] = seen
    return unchanged, [file for file in files if file not in unchanged]


def _far(
    ray: Any, looker: Looker, files: Sequence[str], half: Path, batch: int, threads: int, precision: str
) -> Iterator[Seen]:
    """Looks made by the cluster, in the order of `files`."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # the first of equal pictures must be the first by name
    context.enable_progress_bars = False
    carried = ray.put((looker.source, frozenset(looker.stored)))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    threads = min(threads, cpus)
    rows = ray.data.from_items([{"file": file} for file in files], override_num_blocks=max(1, len(files) // batch))
    seen = rows.map_batches(
        _Worker,
        fn_constructor_args=(carried, half, threads, precision),
        batch_size=batch,
        batch_format="numpy",
        num_cpus=threads,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, cpus // threads)),
    )
    for row in seen.iter_rows():
        yield _seen(row)


class _Worker:
    """One process of the cluster with a tower of its own."""

    def __init__(self, carried: Any, half: Path, threads: int, precision: str) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        source, stored = ray.get(carried)
        self._looker = Looker(source, {}, stored)
        self._half, self._threads, self._precision = half, threads, precision
        self._manifest = read_cloud(half)
        self._decoder = InThreads(self._manifest.picture)
        self._pool = ThreadPoolExecutor(threads)
        self._tower: ImageTower | None = None

    def __call__(self, asked: Mapping[str, NDArray[Any]]) -> Columns:
        found = list(self._pool.map(lambda file: self._looker.look(str(file), self._decoder), asked["file"]))
        fresh = [at for at, seen in enumerate(found) if seen.pixels is not None]
        return {
            "file": np.array([seen.file for seen in found], object),
            "trouble": np.array([seen.trouble for seen in found], object),
            "id": np.array([seen.entry.id if seen.entry else "" for seen in found], object),
            "fingerprint": np.array([seen.entry.fingerprint if seen.entry else "" for seen in found], object),
            "fresh": np.isin(np.arange(len(found)), fresh),
            **self._vectors([seen.pixels for seen in found if seen.pixels is not None], fresh, len(found)),
        }

    def _vectors(self, pixels: Sequence[NDArray[np.uint8]], fresh: Sequence[int], rows: int) -> Columns:
        """(rows, dim) by column; zeros where there is nothing to embed."""
        columns = {VECTOR + name: np.zeros((rows, self._manifest.dim), np.float32) for name in self._manifest.targets}
        if pixels:
            self._tower = self._tower or ImageTower(
                self._half, self._manifest, threads=self._threads, precision=self._precision
            )
            for name, made in self._tower.vectors(np.stack(pixels)).items():
                columns[VECTOR + name][list(fresh)] = made
        return columns


def _seen(row: Mapping[str, Any]) -> Seen:
    file = str(row["file"])
    entry = Entry(file, str(row["fingerprint"]), str(row["id"])) if row["id"] else None
    vectors = {
        column.removeprefix(VECTOR): np.asarray(value, np.float32)
        for column, value in row.items()
        if column.startswith(VECTOR)
    }
    return Seen(file=file, entry=entry, trouble=str(row["trouble"]), vectors=vectors if row["fresh"] else None)
