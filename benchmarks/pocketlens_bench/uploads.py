"""The other way to build it: the device sends its picture, and the cloud runs the large image tower.

A server for measurements alone: JPEG and words in; image tower, symmetric token learner, text tower, gallery; hits
out. It shares towers, composition and gallery with the product, so what differs is what is compared. Called by
network.py and load.py; `python -m pocketlens_bench.uploads` is the server process."""

import argparse
import asyncio
import io
import json
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import numpy as np
from PIL import Image
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.compose import VECTOR_OF, Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Search
from pocketlens_cloud.runtime import Graph
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.pictures import PictureSpec, fit, open_picture

from pocketlens_bench.baselines import Baselines

METHOD = "/pocketlens.bench.Uploads/Search"
UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    (
        "grpc.http2.bdp_probe",
        0,
    ),  # its pings wait behind a large picture on a slow line, and a late one ends the connection
    ("grpc.http2.ping_timeout_ms", 600_000),
]
TOP = 10
AT_ONCE = 2  # model runs; each uses several threads itself

Prepare = Callable[[bytes], bytes]  # a picture file to the JPEG that is sent


def as_taken(file: bytes) -> bytes:
    """The file itself."""
    return file


def made_smaller(side: int, quality: int) -> Prepare:
    """Decoded on the device, brought to at most `side` pixels a side, and packed again."""

    def prepare(file: bytes) -> bytes:
        picture = open_picture(file, near=side)
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
        return _jpeg(picture, quality)

    return prepare


def as_the_tower_sees(spec: PictureSpec, quality: int) -> Prepare:
    """Exactly the pixels that the large tower wants: the fewest bytes that lose nothing but JPEG's own."""
    return lambda file: _jpeg(Image.fromarray(fit(open_picture(file, near=spec.side), spec)), quality)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=quality)
    return packed.getvalue()


class UploadClient:
    """Context manager: asks the upload server."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, UNLIMITED)
        self._ask = self._channel.unary_unary(METHOD)

    def __enter__(self) -> "UploadClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def search(self, jpeg: bytes, words: str, *, timeout_s: float) -> dict[str, Any]:
        """{"hits": [[id, score], ...], "times_ms": {...}}"""
        return json.loads(self._ask(message(jpeg, words), timeout=timeout_s, wait_for_ready=True))


def message(jpeg: bytes, words: str) -> bytes:
    """Length of the words (4 bytes, big-endian), the words, the picture."""
    said = words.encode()
    return struct.pack(">I", len(said)) + said + jpeg


class Uploads:
    """What the server does with a message."""

    def __init__(self, bundle: Path, gallery: Path, threads: int) -> None:
        folder, manifest = open_cloud_half(bundle)
        baselines = Baselines.load(bundle, threads=threads)
        if baselines is None:
            raise BadBundle(f"{bundle} has no baselines folder, so there is nothing to upload pictures to")
        self._baselines = baselines
        self._spec = manifest.picture
        self._tower = Graph(folder / manifest.image_tower["fp32"].file, threads=threads)
        self._composer = Composer.load(bundle, threads=threads)
        self._gallery = EmbeddedGallery.open(gallery)

    def answer(self, request: bytes) -> bytes:
        """Composition is zero-shot, as the tokens' way is measured."""
        began = perf_counter()
        (length,) = struct.unpack(">I", request[:4])
        words, jpeg = request[4 : 4 + length].decode(), request[4 + length :]
        pixels = fit(open_picture(jpeg, near=self._spec.side), self._spec)[None]
        decoded = perf_counter()
        (places,) = self._tower.run(["places"], {"pixels": pixels})
        (sentence,) = self._baselines.sentences(np.asarray(places))
        towered = perf_counter()
        composed = self._composer.compose(sentence, words, "zero-shot")
        texted = perf_counter()
        hits = self._gallery.search(Search(vector=composed.vector, name=VECTOR_OF["zero-shot"], top=TOP))
        ended = perf_counter()
        marks = {"decode": (began, decoded), "image_tower": (decoded, towered), "text_tower": (towered, texted),
                 "search": (texted, ended), "total": (began, ended)}  # fmt: skip
        told = {
            "hits": [[hit.id, hit.score] for hit in hits],
            "times_ms": {name: 1e3 * (end - start) for name, (start, end) in marks.items()},
        }
        return json.dumps(told).encode()


async def serve(uploads: Uploads, ready: Path) -> None:
    """Until SIGTERM. As many questions at once as the product's server takes."""

    async def search(request: bytes, context: Any) -> bytes:
        del context
        async with room:
            return await asyncio.to_thread(uploads.answer, request)

    room = asyncio.Semaphore(AT_ONCE)
    server = grpc.aio.server(options=UNLIMITED)
    service, _, method = METHOD[1:].partition("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(search)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    partial = ready.with_suffix(".partial")
    partial.write_text(f"127.0.0.1:{port}", encoding="utf-8")
    partial.replace(ready)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1.0)


def main() -> None:
    """The server process."""
    options = argparse.ArgumentParser(description="The upload server of the network measurement.")
    for name in ("--bundle", "--gallery", "--ready-file"):
        options.add_argument(name, type=Path, required=True)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    asyncio.run(serve(Uploads(given.bundle, given.gallery, given.threads), given.ready_file))


if __name__ == "__main__":
    main()
