"""The page, built; a server of it; a real Chromium. Tests are skipped, with the reason, where a machine has no node or
no Chromium, and fail where it has them and something is wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.indexing import ingest
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import gateway, server
from pocketlens_cloud.serving.door import Door
from pocketlens_cloud.serving.front import Front
from pocketlens_cloud.serving.thumbnails import Thumbnails
from pocketlens_samples.queries import composed_set, write_gallery
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.v1 import retrieval_pb2 as pb

ROOT = Path(__file__).parents[2]
WEB = ROOT / "edge" / "web"
PICTURES = 300


@pytest.fixture(scope="session")
def packages(tmp_path_factory) -> Path:
    """edge/web with its locked packages installed."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node or npm is not installed: the page cannot be built")
    version = subprocess.check_output(["node", "--version"], text=True).strip()
    if int(version.removeprefix("v").split(".")[0]) < 20:
        pytest.skip(f"node {version} is older than 20: the page cannot be built")
    with FileLock(tmp_path_factory.getbasetemp().parent / "npm.lock"):  # test processes share one folder of packages
        _run(["make", "--silent", "edge/web/node_modules/installed"], ROOT)
    return WEB


@pytest.fixture(scope="session")
def built(packages, tmp_path_factory) -> Path:
    """The page, built into a folder of the test's own: the package is left as it is."""
    out = tmp_path_factory.mktemp("page") / "page"
    _run(["node", "build.mjs", str(out)], packages)
    return out


@pytest.fixture(scope="session")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    if not (found := next(filter(None, map(shutil.which, names)), None)):
        pytest.skip(f"none of {', '.join(names)} is installed: no browser to test with")
    return found


class Browser:
    """Chromium, led by drive.mjs: `browser.click("#go")` does what DO.click there says."""

    def __init__(self, chromium: str, profile: Path) -> None:
        call = ["node", str(Path(__file__).with_name("drive.mjs")), str(WEB), chromium, str(profile)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(call, text=True, **pipes)

    def __getattr__(self, what: str) -> Callable[..., Any]:
        return lambda *given: self._do(what, *given)

    def _do(self, what: str, *given: Any) -> Any:
        process = self._process
        process.stdin.write(json.dumps({"what": what, "given": given}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, f"the browser ended: {process.stderr.read()[-2000:]}"
        answer = json.loads(line)
        assert "failed" not in answer, answer["failed"]
        return answer["done"]

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            for pipe in (self._process.stdout, self._process.stderr):
                pipe.close()


@pytest.fixture(scope="module")
def browser(packages, chromium, tmp_path_factory) -> Iterator[Browser]:
    """A Chromium of its own, with a new and empty profile."""
    led = Browser(chromium, tmp_path_factory.mktemp("profile"))
    try:
        yield led
    finally:
        led.close()


@dataclass
class House:
    """A gallery of drawn pictures and the service over it. `asked`: the requests that came."""

    pictures: Path
    gallery: EmbeddedGallery
    service: Service
    asked: list[pb.SearchRequest] = field(default_factory=list)


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> Iterator[House]:
    at = tmp_path_factory.mktemp("house")
    drawn = composed_set(queries=8, gallery=PICTURES)
    write_gallery(at / "pictures", drawn.gallery, processes=1)
    ingest.index(at / "pictures", at / "gallery", default_bundle(), threads=1)
    with EmbeddedGallery.open(at / "gallery") as gallery:
        service = Service(Composer.load(default_bundle(), threads=1), gallery)
        yield House(at / "pictures", gallery, service)


class Listening(Service):
    """A service that remembers what it was asked."""

    def __init__(self, house: House) -> None:
        self.__dict__.update(house.service.__dict__)
        self._asked = house.asked

    def check(self, request: pb.SearchRequest):
        self._asked.append(request)
        return super().check(request)


@contextmanager
def serving(house: House, built: Path, bundle: Path, door: Door | None = None) -> Iterator[str]:
    """The page's address; the server runs in a thread until left. door: what its questions pass."""
    service = Listening(house)
    site = gateway.open_site(service, bundle, Thumbnails(house.gallery, house.pictures), page=built)
    found: dict[str, Any] = {}
    ready = threading.Event()

    async def run() -> None:
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()

        def beside(house: Front) -> Any:
            on_ready = lambda port: found.update(web=port)  # noqa: E731
            return gateway.serving(house, site, host="127.0.0.1", port=0, on_ready=on_ready, door=door)

        await server.run(
            service, host="127.0.0.1", port=0, on_ready=lambda _: ready.set(), stop=found["stop"], beside=beside
        )

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield f"http://127.0.0.1:{found['web']}/"
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def page(built, house) -> Iterator[str]:
    """The page's address, served with the default bundle."""
    with serving(house, built, default_bundle()) as address:
        yield address


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    return serving


def _run(call: list[str], cwd: Path) -> None:
    done = subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
