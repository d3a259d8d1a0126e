"""The way of a query, each part its own process: pictures on disk, indexer, server, the device's command, answer.

Runs on the default bundle: the committed one, or the one in $POCKETLENS_BUNDLE."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from pocketlens_edge.client import Client
from pocketlens_edge.encoder import Encoder
from pocketlens_samples.queries import ComposedSet, composed_set, write_gallery
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.limits import MAX_REQUEST_BYTES
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb

QUERIES, PICTURES = 40, 400
SCRIPTS = Path(sys.executable).parent
SEARCH = "/pocketlens.v1.Retrieval/Search"
StatusCode = grpc.StatusCode


@dataclass(frozen=True)
class House:
    """A folder of drawn pictures, the gallery made of it, and a server that serves it."""

    drawn: ComposedSet
    pictures: Path
    gallery: Path
    address: str
    imported: Callable[[], str]  # what the server process has imported so far, one line each


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[House]:
    at = tmp_path_factory.mktemp("house")
    drawn = composed_set(queries=QUERIES, gallery=PICTURES)
    write_gallery(at / "pictures", drawn.gallery, processes=1)
    indexed = _cloud("index", at / "pictures", "--gallery", at / "gallery", "--json")
    assert indexed.returncode == 0, indexed.stderr
    assert json.loads(indexed.stdout)["size"] == PICTURES
    with _serving(at, env=_telling_imports()) as (address, log):
        yield House(drawn, at / "pictures", at / "gallery", address, log.read_text)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(default_bundle())


@pytest.fixture
def client(house, encoder) -> Iterator[Client]:
    manifest = encoder.manifest
    with Client(house.address, token_space=manifest.token_space, encoder_id=manifest.graph().encoder) as client:
        yield client


# --- the whole way


def test_a_picture_and_words_find_pictures(house, tmp_path):
    query = house.drawn.queries[0]
    anchor = tmp_path / "anchor.png"
    Image.fromarray(query.anchor.pixels()).save(anchor)
    asked = _edge("search", anchor, "--text", query.text, "--server", house.address, "--json")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert [hit["rank"] for hit in answer["hits"]] == list(range(1, 11))
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)
    specs = {f"{picture.id}.jpg": picture.spec.payload() for picture in house.drawn.gallery}
    for hit in answer["hits"]:
        file = hit["payload"].pop("file")
        assert (house.pictures / file).exists()
        assert hit["payload"] == specs[file], "payload came back otherwise than it went in"
    _expect_no_torch(asked.stderr)
    _expect_no_torch(house.imported())


def test_a_picture_and_eight_words_fit_in_1200_bytes(house, client, encoder):
    anchor = house.drawn.queries[0].anchor
    answer = client.search(encoder.encode_pixels(anchor.pixels()[None])[0], "the same but red and without a handle")
    assert answer.request_bytes + answer.envelope_bytes < 1200


def test_the_filter_holds_for_every_hit(house, tmp_path):
    asked = _edge(
        "search", "--text", "a red mug", "--filter", "background=grass", "--filter", "count=2",
        "--server", house.address, "--json", "--top", "50",
    )  # fmt: skip
    payloads = [hit["payload"] for hit in json.loads(asked.stdout)["hits"]]
    assert payloads
    assert all(payload["background"] == "grass" and payload["count"] == 2 for payload in payloads)
    grass = {"background": "grass", "count": 2}
    assert len(payloads) == sum(grass.items() <= p.spec.payload().items() for p in house.drawn.gallery)


@pytest.mark.skipif("POCKETLENS_BUNDLE" in os.environ, reason="speaks of the committed bundle")
@pytest.mark.parametrize(("mode", "least"), [("zero-shot", 0.85), ("tuned", 0.9)])
def test_most_composed_queries_are_answered_rightly(house, client, encoder, mode, least):
    """A floor with room to spare on 40 queries, against breakage; quality is measured by pocketlens-bench."""
    found = 0
    for query, relevant in zip(house.drawn.queries, house.drawn.relevant, strict=True):
        tokens = encoder.encode(Image.fromarray(query.anchor.pixels()))
        files = {hit.payload["file"] for hit in client.search(tokens, query.text, mode=mode).hits}
        found += any(f"{house.drawn.gallery[i].id}.jpg" in files for i in relevant)
    assert found >= least * QUERIES, f"{found} of {QUERIES} found in the first ten"


def test_start_to_first_answer(house, encoder, tmp_path, record_property, capsys):
    """Printed, not asserted: the benchmark measures it on a machine that is left alone."""
    shutil.copytree(house.gallery, tmp_path / "gallery")
    started = time.monotonic()
    with _serving(tmp_path, env=None) as (address, _):
        ready_s = time.monotonic() - started
        ids = {"token_space": encoder.manifest.token_space, "encoder_id": encoder.encoder_id}
        with Client(address, **ids) as client:
            assert client.search(None, "a red mug").hits
        answered_s = time.monotonic() - started
    record_property("first_answer_s", answered_s)
    with capsys.disabled():
        print(f" [server ready after {ready_s:.2f} s, first answer after {answered_s:.2f} s] ", end="")  # noqa: T201


# --- a server that meets the world


def _request(encoder: Encoder, /, **changes: object) -> pb.SearchRequest:
    """A good request with `changes`."""
    manifest = encoder.manifest
    tokens = np.ones((manifest.token_count, manifest.token_width), np.float32)
    good = {"token_space": manifest.token_space, "encoder": manifest.graph().encoder, "words": "red", "top": 5}
    return pb.SearchRequest(**{"sentence": pack(tokens, Encoding.F32)} | good | changes)


def _with_tokens(encoder: Encoder, /, **changes: object) -> pb.SearchRequest:
    request = _request(encoder)
    for name, value in changes.items():
        setattr(request.sentence, name, value)
    return request


def _not_finite(encoder: Encoder) -> pb.SearchRequest:
    return _with_tokens(encoder, data=np.full(len(_request(encoder).sentence.data) // 4, np.nan, "<f4").tobytes())


HOSTILE: dict[str, tuple[Callable[[Encoder], pb.SearchRequest | bytes], grpc.StatusCode, str]] = {
    "malformed protobuf": (lambda _: b"\xff" * 64, StatusCode.INVALID_ARGUMENT, "not a valid"),
    "cut short": (lambda e: _request(e).SerializeToString()[:-3], StatusCode.INVALID_ARGUMENT, "not a valid"),
    "oversize": (lambda _: b"\0" * (MAX_REQUEST_BYTES + 1), StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    "foreign token space": (lambda e: _request(e, token_space="ts-0"), StatusCode.FAILED_PRECONDITION, "ts-0"),
    "foreign encoder": (lambda e: _request(e, encoder="enc-0"), StatusCode.FAILED_PRECONDITION, "enc-0"),
    "foreign gallery space": (lambda e: _request(e, gallery_space="gs-0"), StatusCode.FAILED_PRECONDITION, "gs-0"),
    "no token space": (lambda e: _request(e, token_space=""), StatusCode.INVALID_ARGUMENT, "token_space"),
    "wrong width": (lambda e: _with_tokens(e, width=7), StatusCode.INVALID_ARGUMENT, "width 7"),
    "no tokens": (lambda e: _with_tokens(e, count=0), StatusCode.INVALID_ARGUMENT, "0 tokens"),
    "too many tokens": (lambda e: _with_tokens(e, count=2**31), StatusCode.INVALID_ARGUMENT, "tokens"),
    "NaN": (_not_finite, StatusCode.INVALID_ARGUMENT, "must be finite"),
    "top 0": (lambda e: _request(e, top=0), StatusCode.INVALID_ARGUMENT, "top must be 1"),
    "top huge": (lambda e: _request(e, top=2**32 - 1), StatusCode.INVALID_ARGUMENT, "top must be 1"),
    "words too long": (lambda e: _request(e, words="red " * 2000), StatusCode.INVALID_ARGUMENT, "words may have"),
    "unknown mode": (lambda e: _request(e, mode=9), StatusCode.INVALID_ARGUMENT, "mode"),
    "unknown filter key": (
        lambda e: _request(e, filter=[pb.Condition(key="price", equals=pb.Value(integer=3))]),
        StatusCode.INVALID_ARGUMENT,
        "`price` is unknown",
    ),
    "empty query": (
        lambda e: pb.SearchRequest(token_space=e.manifest.token_space, top=5),
        StatusCode.INVALID_ARGUMENT,
        "query is empty",
    ),
}


def test_every_hostile_request_gets_its_status_and_the_server_lives(house, client, encoder):
    before = client.search(None, "a red mug").hits
    with grpc.insecure_channel(house.address) as channel:
        call = channel.unary_unary(SEARCH, request_serializer=None, response_deserializer=None)
        for name, (hostile, status, said) in HOSTILE.items():
            request = hostile(encoder)
            data = request if isinstance(request, bytes) else request.SerializeToString()
            with pytest.raises(grpc.RpcError) as refused:
                call(data, timeout=5)
            assert refused.value.code() is status, f"{name}: {refused.value}"
            assert said in refused.value.details(), name
    with socket.create_connection(_host_and_port(house.address)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    assert client.search(None, "a red mug").hits == before


def test_a_second_process_may_not_open_the_gallery(house):
    second = _cloud("index", house.pictures, "--gallery", house.gallery)
    assert second.returncode == 2
    assert "is open in another process (pid" in second.stderr


def test_words_too_long_are_cut_and_the_reply_says_so(house):
    asked = _edge("search", "--text", "red mug " * 60, "--server", house.address, "--json")
    answer = json.loads(asked.stdout)
    assert answer["words_used"] == " ".join(["red mug"] * 60)[: len(answer["words_used"])]
    assert 0 < len(answer["words_used"].split()) < 120
    assert any("longer than the text tower reads" in note for note in answer["notes"])


# --- what goes wrong, in plain sentences


def test_no_server_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = _edge("search", "--text", "red", "--server", f"127.0.0.1:{port}")
    assert asked.returncode == 1
    assert "No Pocketlens server answers there" in asked.stderr
    assert "Traceback" not in asked.stderr


@pytest.mark.parametrize(("half", "key"), [("edge", "encoder.fp32.onnx"), ("cloud", "text_tower.onnx")])
def test_a_flipped_byte_in_the_bundle(house, tmp_path, half, key):
    bundle = tmp_path / "bundle"
    shutil.copytree(default_bundle(), bundle)
    file = bundle / half / key
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    if half == "edge":
        anchor = house.pictures / f"{house.drawn.gallery[0].id}.jpg"
        run = _edge("search", anchor, "--server", house.address, "--bundle", bundle)
    else:
        run = _cloud("index", house.pictures, "--gallery", tmp_path / "gallery", "--bundle", bundle)
    assert run.returncode != 0
    assert f"{half}/{key}" in run.stderr
    assert "Traceback" not in run.stderr


def test_bad_pictures_are_listed_and_the_others_indexed(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "good.png")
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    Image.new("1", (10_000, 6_000)).save(folder / "huge.png")
    (folder / "empty.jpg").touch()
    (folder / "words.jpg").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    for options, code in (([], 1), (["--allow-unreadable", "5"], 0)):
        run = _cloud("index", folder, "--gallery", tmp_path / "gallery", "--json", *options)
        assert run.returncode == code, run.stderr
        report = json.loads(run.stdout)
        assert report["size"] == 1
        said = dict(report["unreadable"])
        assert said.keys() == {"tiny.png", "huge.png", "empty.jpg", "words.jpg", "cut.png"}
        assert "limit is 50 megapixels" in said["huge.png"]
        assert "empty" in said["empty.jpg"]


def test_a_killed_indexer_goes_on_where_it_was(house, tmp_path):
    gallery = tmp_path / "gallery"
    call = [_script("pocketlens-cloud"), "index", house.pictures, "--gallery", gallery, "--batch", "8"]
    killed = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = gallery / "journal.jsonl"
    _wait_until(lambda: journal.exists() and len(journal.read_bytes().splitlines()) >= 40)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was done before it could be killed"
    again = json.loads(_cloud("index", house.pictures, "--gallery", gallery, "--json").stdout)
    assert again["skipped"] >= 40
    assert again["indexed"] > 0
    assert again["indexed"] + again["skipped"] == again["size"] == PICTURES
    once_more = json.loads(_cloud("index", house.pictures, "--gallery", gallery, "--json").stdout)
    assert (once_more["indexed"], once_more["size"]) == (0, PICTURES)


# --- processes


@contextmanager
def _serving(at: Path, *, env: dict[str, str] | None) -> Iterator[tuple[str, Path]]:
    """Address and log of a server of the gallery in `at`; stopped by SIGTERM, which must be graceful."""
    ready, log = at / "ready", at / "server.log"
    call = [_script("pocketlens-cloud"), "serve", "--gallery", at / "gallery", "--port", "0", "--ready-file", ready]
    with log.open("wb") as out:
        process = subprocess.Popen(call, stdout=out, stderr=out, env=env)
    try:
        _wait_until(lambda: ready.exists() or process.poll() is not None, 30)
        assert process.poll() is None, log.read_text()[-2000:]
        yield ready.read_text(), log
    finally:
        process.terminate()
        try:
            assert process.wait(15) == 0
        finally:
            process.kill()
    assert not ready.exists()


def _cloud(*arguments: object) -> subprocess.CompletedProcess[str]:
    return _run("pocketlens-cloud", *arguments)


def _edge(*arguments: object) -> subprocess.CompletedProcess[str]:
    return _run("pocketlens-edge", *arguments, env=_telling_imports())


def _run(name: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    call = [_script(name), *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, timeout=60, env=env)


def _script(name: str) -> str:
    return str(SCRIPTS / name)


def _telling_imports() -> dict[str, str]:
    """An environment in which Python writes every import to stderr."""
    return os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}


def _expect_no_torch(said: str) -> None:
    modules = {line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")}
    assert "numpy" in modules, "the imports were not told"
    assert not {module for module in modules if module.split(".")[0] in ("torch", "onnx", "transformers")}


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _wait_until(happens: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
