"""Qdrant servers that tests run against: the fake, and a real one where QDRANT_URL names it.

For a real one also QDRANT_GRPC_PORT (6334), POCKETLENS_QDRANT_API_KEY, and QDRANT_SNAPSHOTS, the folder where the
server itself finds its snapshots (file:///qdrant/snapshots, as in its container). Everything made there has a new name
that begins with `pocketlens-test` and is dropped at the end."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

WHY_NOT = "QDRANT_URL is not set: no Qdrant server to test against"


@dataclass(frozen=True)
class Running:
    """A server and a name on it that nobody else has."""

    server: "Server"  # noqa: F821  pocketlens_cloud.gallery.qdrant
    name: str
    snapshot: Callable[[str, str], str]  # (collection, file) -> where the server finds it


@contextmanager
def fake(home: Path) -> Iterator[Running]:
    from pocketlens_cloud.gallery.qdrant import Address
    from qdrant.fake import FakeQdrant

    with FakeQdrant(home) as serving:
        address = Address(url=serving.url, grpc_port=serving.grpc_port)
        with _running(address, lambda collection, file: f"file://{home / 'snapshots' / collection / file}") as made:
            yield made


@contextmanager
def real(home: Path) -> Iterator[Running]:
    from pocketlens_cloud.gallery.qdrant import Address, read_key

    url = os.environ.get("QDRANT_URL")
    if not url:
        pytest.skip(WHY_NOT)
    port = int(os.environ.get("QDRANT_GRPC_PORT", "6334"))
    folder = os.environ.get("QDRANT_SNAPSHOTS", "file:///qdrant/snapshots")
    address = Address(url=url, grpc_port=port, api_key=read_key(None), timeout_s=30)
    with _running(address, lambda collection, file: f"{folder}/{collection}/{file}") as made:
        yield made


@contextmanager
def _running(address: "Address", snapshot: Callable[[str, str], str]) -> Iterator[Running]:  # noqa: F821
    from pocketlens_cloud.gallery.qdrant import Server

    server, name = Server(address), f"pocketlens-test-{secrets.token_hex(6)}"
    try:
        yield Running(server, name, snapshot)
    finally:
        for collection in server.collections():
            if collection.startswith(name):
                server.drop(collection)
        server.close()


SERVERS = {"fake": fake, "server": real}
