"""A small gallery of the sample world, and the real server around it in a thread."""

from __future__ import annotations

import asyncio
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from PIL import Image
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.indexing import ingest
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import server
from pocketlens_samples.queries import composed_set, write_gallery
from pocketlens_wire.bundle import default_bundle

PICTURES = 60
Serving = Callable[[Service], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pictures/`, `gallery/` made of them, and `mug.jpg` to ask with. Nobody writes into it."""
    at = tmp_path_factory.mktemp("small-world")
    drawn = composed_set(queries=4, gallery=PICTURES)
    write_gallery(at / "pictures", drawn.gallery, processes=1)
    assert ingest.index(at / "pictures", at / "gallery", default_bundle()).size == PICTURES
    Image.fromarray(drawn.queries[0].anchor.pixels()).save(at / "mug.jpg", quality=95)
    return at


@pytest.fixture(scope="session")
def serve() -> Serving:
    """`with serve(service) as address:` the real gRPC server on a port of the system's choice."""

    @contextmanager
    def serving(service: Service) -> Iterator[str]:
        ready, addresses = threading.Event(), list[str]()
        loop, stop = asyncio.new_event_loop(), asyncio.Event()

        def note(port: int) -> None:
            addresses.append(f"127.0.0.1:{port}")
            ready.set()

        def run() -> None:
            loop.run_until_complete(server.run(service, host="127.0.0.1", port=0, on_ready=note, stop=stop))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(10)
            yield addresses[0]
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(15)
            assert not thread.is_alive()
            loop.close()

    return serving


@pytest.fixture(scope="session")
def address(small_world: Path, serve: Serving) -> Iterator[str]:
    """HOST:PORT of a server of the small world. It holds the gallery: copy it to open it beside."""
    with (
        EmbeddedGallery.open(small_world / "gallery") as gallery,
        serve(Service(Composer.load(default_bundle()), gallery)) as where,
    ):
        yield where


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the path that declares this tree's entry points, as an installation would."""
    root = Path(__file__).parents[2]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    folder = tmp_path_factory.mktemp("installed")
    info = folder / "pocketlens-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pocketlens\nVersion: 0\n")
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in declared.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder
