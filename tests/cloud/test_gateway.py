"""The HTTP gateway: the same answers as over gRPC, and a status and a sentence for everything else."""

import asyncio
import hashlib
import http.client
import io
import json
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from pocketlens_cloud.cli import app
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import front, gateway, metrics, server
from pocketlens_cloud.serving.front import Front
from pocketlens_cloud.serving.thumbnails import SIDE, NoPicture, Thumbnails
from pocketlens_wire import errors, limits, manifest
from pocketlens_wire.errors import (
    HTTP_STATUS_OF,
    STATUS_OF,
    BadBundle,
    BadPicture,
    GalleryError,
    Overloaded,
    ServerFault,
    SpaceMismatch,
    TooLate,
)
from pocketlens_wire.pictures import PictureSpec
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub
from typer.testing import CliRunner

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def edge_half(toy, at: Path, **changes: str) -> Path:
    """An edge half that goes with the toy's cloud half; nothing runs its graph here."""
    half = at / "edge"
    half.mkdir(parents=True)
    (half / "encoder.fp32.onnx").write_bytes(b"graph")
    (half / "golden.npz").write_bytes(b"golden")
    ids = {"token_space": toy.token_space, "encoder": toy.encoder} | changes
    graph = manifest.describe_encoder(half / "encoder.fp32.onnx", encoder=ids["encoder"], tolerance=1e-4)
    manifest.write(
        manifest.EdgeManifest(
            name="toy", token_space=ids["token_space"], token_count=4, token_width=toy.width,
            picture=PictureSpec(side=toy.side, fit="crop"), graphs={"fp32": graph},
            golden=manifest.describe_file(half / "golden.npz"), report=None, page=None,
        ),
        half,
    )  # fmt: skip
    return at


@pytest.fixture(scope="module")
def bundle(toy, tmp_path_factory) -> Path:
    return edge_half(toy, tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Something in the place of the built page."""
    at = tmp_path_factory.mktemp("page")
    (at / "ort").mkdir()
    for name in ("index.html", "main.js", "style.css", "ort/run.mjs", "ort/run.wasm"):
        (at / name).write_text(f"this is {name}")
    return at


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: dict[str, str]  # names in lower case

    @property
    def said(self) -> dict[str, str]:
        return json.loads(self.body)


class Gate:
    """A running gateway, beside gRPC."""

    def __init__(self, port: int, grpc_port: int) -> None:
        self.port, self.grpc_port = port, grpc_port

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            line.request(method, path, body, headers or {})
            came = line.getresponse()
            return Reply(came.status, came.read(), {key.lower(): value for key, value in came.getheaders()})
        finally:
            line.close()

    def search(self, request: pb.SearchRequest) -> Reply:
        return self.ask("POST", "/v1/search", request.SerializeToString(), PROTOBUF)

    @contextmanager
    def raw(self, sent: bytes) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), 20) as line:
            line.sendall(sent)
            yield line


@contextmanager
def running(service: Service, site: gateway.Site) -> Iterator[Gate]:
    found: dict[str, Any] = {}
    ready = threading.Event()

    async def run() -> None:
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()

        def beside(house: Front) -> Any:
            return gateway.serving(house, site, host="127.0.0.1", port=0, on_ready=lambda port: found.update(web=port))

        def on_ready(port: int) -> None:
            found["grpc"] = port
            ready.set()

        await server.run(service, host="127.0.0.1", port=0, on_ready=on_ready, stop=found["stop"], beside=beside)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield Gate(found["web"], found["grpc"])
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def gate(service, gallery, pictures, bundle, page) -> Iterator[Gate]:
    site = gateway.open_site(service, bundle, Thumbnails(gallery, pictures), page=page)
    with running(service, site) as gate:
        yield gate


# --- the same answers


def test_the_bytes_are_those_of_grpc(gate, toy):
    request = toy.request(top=7)
    came = gate.search(request)
    assert (came.status, came.headers["content-type"]) == (200, "application/x-protobuf")
    with grpc.insecure_channel(f"127.0.0.1:{gate.grpc_port}") as channel:
        wanted = RetrievalStub(channel).Search(request, timeout=10)
        facts = RetrievalStub(channel).Describe(pb.DescribeRequest(), timeout=10)
    reply = pb.SearchReply.FromString(came.body)
    reply.ClearField("times")
    wanted.ClearField("times")
    assert reply == wanted and len(reply.hits) == 7
    described = pb.DescribeReply.FromString(gate.ask("POST", "/v1/describe", b"", PROTOBUF).body)
    described.unix_ms = facts.unix_ms  # the clock went on
    assert described == facts


def test_answers_are_not_kept_by_anyone(gate, toy):
    assert gate.search(toy.request()).headers["cache-control"] == "no-store"


# --- what is refused


def test_every_error_has_an_http_status_and_every_status_is_one():
    assert set(HTTP_STATUS_OF) == set(STATUS_OF)
    assert all(400 <= status < 600 for status in HTTP_STATUS_OF.values())
    mine = {leaf for leaf, status in HTTP_STATUS_OF.items() if status < 500}
    askers = {errors.BadPicture, errors.BadQuery, errors.SpaceMismatch, errors.Unauthenticated, errors.NotAllowed}
    assert mine == askers  # the others are ours
    assert errors.http_status_of(ValueError("x")) == 500


@pytest.mark.parametrize(
    ("changes", "status", "kind", "named"),
    [
        ({"top": 0}, 400, "BadQuery", "top must be 1 to 1000"),
        ({"sentence": None, "words": ""}, 400, "BadQuery", "the query is empty"),
        ({"token_space": "ts-other"}, 409, "SpaceMismatch", "`ts-other`"),
        ({"encoder": "enc-other"}, 409, "SpaceMismatch", "`enc-other`"),
        ({"words": "x" * 4097}, 400, "BadQuery", "4096 bytes"),
    ],
)
def test_a_question_the_service_refuses(gate, toy, changes, status, kind, named):
    came = gate.search(toy.request(**changes))
    assert (came.status, came.said["kind"]) == (status, kind)
    assert named in came.said["message"]
    if kind == "SpaceMismatch":
        assert toy.token_space in came.said["message"] or toy.encoder in came.said["message"]


def test_a_wrong_model_is_refused_with_both_ids(gate, toy):
    said = gate.search(toy.request(token_space="ts-other")).said["message"]
    assert "`ts-other`" in said and f"`{toy.token_space}`" in said


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "named"),
    [
        ("POST", "/v1/search", b"\xff" * 50, PROTOBUF, 400, "not a valid pocketlens.v1.SearchRequest"),
        ("POST", "/v1/describe", b"\x0a\xff", PROTOBUF, 400, "not a valid pocketlens.v1.DescribeRequest"),
        ("POST", "/v1/search", b"{}", {"Content-Type": "application/json"}, 415, "application/json came"),
        ("POST", "/v1/search", b"", {}, 415, "none came"),
        ("POST", "/v1/search", b"x", PROTOBUF | {"Content-Encoding": "gzip"}, 415, "compressed"),
        ("POST", "/v1/search", b"\0" * (limits.MAX_REQUEST_BYTES + 1), PROTOBUF, 413, "65,536 bytes"),
        ("POST", "/v1/search", iter([b"\0" * 40_000] * 3), PROTOBUF, 413, "65,536 bytes"),  # in chunks, no length
        ("GET", "/v1/search", None, {}, 405, "not asked in that way"),
        ("POST", "/", b"", {}, 405, "not asked in that way"),
        ("OPTIONS", "/v1/search", None, {"Origin": "http://evil.example"}, 405, "not asked in that way"),
        ("GET", "/nothing", None, {}, 404, "nothing at this address"),
        ("GET", "/../pyproject.toml", None, {}, 404, "nothing at this address"),
        ("GET", "/%2e%2e/gateway.py", None, {}, 404, "nothing at this address"),
        ("GET", "/ort/", None, {}, 404, "nothing at this address"),
        ("GET", "/v1/bundle/../cloud/manifest.json", None, {}, 404, "nothing at this address"),
        ("GET", "/v1/bundle/report.json", None, {}, 404, "nothing at this address"),
        ("GET", "/" + "a" * 5000, None, {}, 404, "nothing at this address"),
    ],
)
def test_what_is_no_question_is_named_and_refused(gate, method, path, body, headers, status, named):
    came = gate.ask(method, path, body, headers)
    assert came.status == status
    assert came.headers["content-type"] == "application/json"
    assert named in came.said["message"]
    assert b"Traceback" not in came.body and b".py" not in came.body
    assert "access-control-allow-origin" not in came.headers


def test_bytes_that_are_no_http_do_no_harm(gate, toy):
    for sent in (
        b"\x16\x03\x01\x02\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    ):
        with gate.raw(sent) as line:
            line.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                assert b"Traceback" not in line.recv(4096)
    assert gate.search(toy.request()).status == 200


def test_a_slow_body_and_a_slow_head_are_not_waited_for(gate, toy, monkeypatch):
    monkeypatch.setattr(gateway, "BODY_S", 0.5)
    monkeypatch.setattr(gateway, "HEAD_S", 1.0)
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
    with gate.raw(head + b"Content-Length: 900\r\n\r\nabc") as line:
        came = line.makefile("rb").read()  # to the end: the connection is closed too
    assert came.startswith(b"HTTP/1.1 408") and b"did not arrive within" in came
    for sent in (b"", head):
        began = time.monotonic()
        with gate.raw(sent) as line:
            assert line.recv(100) == b""
        assert time.monotonic() - began < 5
    with gate.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") as line:  # a second request that never comes whole
        came = b""
        while not came.endswith(b"this is index.html"):
            came += line.recv(65536)
        time.sleep(0.1)
        line.sendall(b"GET / HT")
        began = time.monotonic()
        while line.recv(65536):
            pass
        assert time.monotonic() - began < 4
    monkeypatch.undo()
    assert gate.search(toy.request()).status == 200


LONG = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
DECLARED, CHUNKED = "declared", "chunked"


def pieces_of(how: str, size: int, piece: int = 8192) -> Iterator[bytes]:
    """The head of a request, then `size` zeros of body a piece at a time, its length declared or not."""
    yield LONG + (b"Transfer-Encoding: chunked\r\n\r\n" if how == CHUNKED else b"Content-Length: %d\r\n\r\n" % size)
    for at in range(0, size, piece):
        part = bytes(min(piece, size - at))
        yield b"%x\r\n%s\r\n" % (len(part), part) if how == CHUNKED else part
    if how == CHUNKED:
        yield b"0\r\n\r\n"


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """Bytes of each piece of a body that the gateway took in."""
    sizes: list[int] = []
    stream = gateway.Request.stream

    async def counted(request: Any) -> Any:
        async for piece in stream(request):
            sizes.append(len(piece))
            yield piece

    monkeypatch.setattr(gateway.Request, "stream", counted)
    return sizes


@pytest.mark.parametrize("how", [DECLARED, CHUNKED])
def test_who_sends_too_much_can_send_it_all_and_reads_why_it_is_refused(gate, taken, how):
    size = 200_000
    with gate.raw(b"") as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces_of(how, size):
            assert select.select([line], [], [], 0.002)[0] == []  # no answer before the end, so none that is missed
            line.sendall(piece)
        came = line.makefile("rb").read()
    head, _, body = came.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413") and b"connection: close" in head.lower()
    assert "65,536 bytes" in json.loads(body)["message"]
    assert sum(taken) == size


@pytest.mark.parametrize("how", [DECLARED, CHUNKED])
def test_who_never_ends_is_not_read_beyond_a_mebibyte(gate, toy, taken, how):
    with gate.raw(b"") as line, suppress(ConnectionError):
        for piece in pieces_of(how, 64 << 20, 65_536):
            line.sendall(piece)  # fails once the server has closed
        pytest.fail("all 64 MiB were taken")
    one_read = 512 * 1024  # at most: what the server keeps unread, and one read of its event loop
    assert gateway.MAX_UNKEPT_BYTES < sum(taken) < gateway.MAX_UNKEPT_BYTES + one_read
    assert gate.search(toy.request()).status == 200


def test_another_sites_name_for_this_machine_is_not_answered(gate):
    for host in ("evil.example", f"evil.example:{gate.port}", "127.0.0.1.evil.example", ""):
        came = gate.ask("GET", "/", None, {"Host": host})
        assert came.status == 421 and "localhost" in came.said["message"], host
    for host in ("localhost", f"localhost:{gate.port}", "127.0.0.1", "[::1]:80"):
        assert gate.ask("GET", "/", None, {"Host": host}).status == 200, host


# --- load


class Slow:
    """A composer that waits until it is told to go on."""

    def __init__(self, composer: Any) -> None:
        self._composer, self.begun, self.go_on = composer, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._composer, name)

    def read(self, rows: Any) -> Any:
        self.begun.set()
        assert self.go_on.wait(10)
        return self._composer.read(rows)


@pytest.fixture
def slow(composer, gallery, bundle, page) -> Iterator[tuple[Slow, Gate]]:
    waiting: Any = Slow(composer)
    service = Service(waiting, gallery)
    with running(service, gateway.open_site(service, bundle, None, page=page)) as gate:
        yield waiting, gate
        waiting.go_on.set()


def test_a_question_that_takes_too_long_is_given_up(slow, toy, monkeypatch):
    monkeypatch.setattr(gateway, "QUESTION_S", 0.3)
    came = slow[1].search(toy.request())
    assert (came.status, came.said["kind"]) == (504, "TooLate")
    slow[0].go_on.set()


def test_too_many_questions_are_turned_away_whichever_way_they_came(slow, toy, monkeypatch):
    monkeypatch.setattr(front, "MAX_INSIDE", 1)
    composer, gate = slow
    with grpc.insecure_channel(f"127.0.0.1:{gate.grpc_port}") as channel:
        first = RetrievalStub(channel).Search.future(toy.request(), timeout=10)
        assert composer.begun.wait(5)
        came = gate.search(toy.request())
        assert (came.status, came.said["kind"]) == (503, "Overloaded")
        assert came.headers["retry-after"] == "1"
        composer.go_on.set()
        assert first.result().hits


@pytest.mark.parametrize("fault", [ZeroDivisionError("secret"), ServerFault("the disk is gone")])
def test_a_fault_of_ours_is_500_without_a_stack(gate, toy, monkeypatch, caplog, fault):
    def broken(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(Service, "finish", broken)
    came = gate.search(toy.request())
    assert (came.status, came.said["kind"]) == (500, "ServerFault")
    assert b"secret" not in came.body and b"Traceback" not in came.body
    assert type(fault).__name__ in caplog.text  # the log has it


@pytest.mark.parametrize(
    "error", [Overloaded("x"), TooLate("x"), GalleryError("x"), SpaceMismatch("x"), BadBundle("x")]
)
def test_each_error_keeps_its_kind_and_gets_its_status(gate, toy, monkeypatch, error):
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Service, "finish", broken)
    came = gate.search(toy.request())
    assert (came.status, came.said) == (HTTP_STATUS_OF[type(error)], {"kind": type(error).__name__, "message": "x"})


# --- the page and the bundle


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/main.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/ort/run.mjs", "text/javascript; charset=utf-8"),
        ("/ort/run.wasm", "application/wasm"),
    ],
)
def test_each_file_has_the_type_a_browser_wants(gate, path, kind):
    came = gate.ask("GET", path)
    assert (came.status, came.headers["content-type"]) == (200, kind)
    assert came.body == f"this is {path.strip('/') or 'index.html'}".encode()
    assert gate.ask("HEAD", path).status == 200


def test_every_response_carries_the_security_headers(gate, toy):
    came = [gate.ask("GET", "/"), gate.ask("GET", "/nothing"), gate.ask("GET", "/", None, {"Host": "evil.example"})]
    for reply in [*came, gate.search(toy.request()), gate.search(toy.request(top=0))]:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"
        assert reply.headers["cross-origin-embedder-policy"] == "require-corp"
        policy = reply.headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy
            and "unsafe-inline" not in policy
            and "unsafe-eval'" not in policy.replace("'wasm-unsafe-eval'", "")
        )
        assert "http" not in policy  # no third party
        assert "server" not in reply.headers


def test_a_file_that_did_not_change_is_not_sent_again(gate):
    first = gate.ask("GET", "/ort/run.wasm")
    again = gate.ask("GET", "/ort/run.wasm", None, {"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert gate.ask("GET", "/ort/run.wasm", None, {"If-None-Match": '"other"'}).status == 200


def test_the_edge_half_is_served_and_nothing_else_of_the_bundle(gate, bundle):
    for name in ("manifest.json", "encoder.fp32.onnx", "golden.npz"):
        assert gate.ask("GET", f"/v1/bundle/{name}").body == (bundle / "edge" / name).read_bytes()


def test_a_page_that_was_not_built_says_how(service, bundle, tmp_path):
    with pytest.raises(ServerFault, match="`make web`"):
        gateway.open_site(service, bundle, None, page=tmp_path)


@pytest.mark.parametrize("wrong", [{"token_space": "ts-other"}, {"encoder": "enc-other"}])
def test_an_edge_half_of_another_bundle_is_refused_with_both_ids(service, toy, page, tmp_path, wrong):
    with pytest.raises(SpaceMismatch) as refused:
        gateway.open_site(service, edge_half(toy, tmp_path, **wrong), None, page=page)
    (name, other), ours = next(iter(wrong.items())), {"token_space": toy.token_space, "encoder": toy.encoder}
    assert other in str(refused.value) and ours[name] in str(refused.value)


def test_an_altered_edge_half_is_refused(service, bundle, page, tmp_path):
    shutil.copytree(bundle / "edge", tmp_path / "edge")
    (tmp_path / "edge" / "encoder.fp32.onnx").write_bytes(b"grapH")
    with pytest.raises(BadBundle, match="altered since export"):
        gateway.open_site(service, tmp_path, None, page=page)
    with pytest.raises(BadBundle, match="not a bundle"):
        gateway.open_site(service, tmp_path / "none", None, page=page)


def test_a_port_that_is_taken_is_named(service, bundle, page):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site = gateway.open_site(service, bundle, None, page=page)

        async def serve() -> None:
            async with gateway.serving(None, site, host="127.0.0.1", port=port, on_ready=print):  # type: ignore[arg-type]
                pass

        with pytest.raises(ServerFault, match=f"cannot listen on 127.0.0.1, port {port}"):
            asyncio.run(serve())


# --- pictures


def id_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def test_a_hits_picture_is_shown_small(gate, toy, pictures):
    hit = pb.SearchReply.FromString(gate.search(toy.request()).body).hits[0]
    assert hit.id == id_of(pictures / hit.payload["file"].text)
    came = gate.ask("GET", f"/v1/pictures/{hit.id}")
    assert (came.status, came.headers["content-type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(came.body)).size == (20, 20)  # never enlarged


@pytest.mark.parametrize("wanted", ["0" * 32, "zz", "..%2f..%2fetc%2fpasswd", "A" * 32, "a" * 33, "%00"])
def test_an_id_the_gallery_does_not_hold_is_404(gate, wanted):
    came = gate.ask("GET", f"/v1/pictures/{wanted}")
    assert came.status == 404
    assert came.said["kind"] == "BadQuery"


def test_without_a_folder_no_picture_is_shown_and_it_says_why(slow, pictures):
    came = slow[1].ask("GET", f"/v1/pictures/{'0' * 32}")
    assert came.status == 404 and "--pictures" in came.said["message"]


@pytest.fixture
def shelf(toy, tmp_path, draw_picture) -> Iterator[tuple[Path, EmbeddedGallery]]:
    """A small folder and its gallery, to be spoilt."""
    from pocketlens_cloud.indexing import ingest

    folder = tmp_path / "shelf"
    draw_picture(folder / "one.png", 1, 900)
    draw_picture(folder / "two.png", 2)
    ingest.index(folder, tmp_path / "gallery", toy.bundle)
    with EmbeddedGallery.open(tmp_path / "gallery") as gallery:
        yield folder, gallery


def test_a_large_picture_becomes_small_and_is_kept(shelf):
    folder, gallery = shelf
    thumbnails, wanted = Thumbnails(gallery, folder), id_of(folder / "one.png")
    first = thumbnails.of(wanted)
    assert Image.open(io.BytesIO(first)).size == (SIDE, SIDE)
    (folder / "one.png").unlink()
    assert thumbnails.of(wanted) is first
    gallery.delete([wanted])
    with pytest.raises(NoPicture, match="holds no picture"):  # taken down: gone at once
        thumbnails.of(wanted)


def spoil(how: Callable[[Path], object]) -> Any:
    return pytest.param(how, id=how.__name__)


def gone(file: Path) -> None:
    file.unlink()


def changed(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def another(file: Path) -> None:
    shutil.copy(file.with_name("one.png"), file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_link_out(file: Path) -> None:
    outside = file.parents[1] / "outside.png"
    shutil.move(file, outside)
    file.symlink_to(outside)


def a_link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize(
    "how", [spoil(h) for h in (gone, changed, another, a_folder, a_pipe, a_link_out, a_link_to_itself)]
)
def test_only_the_file_that_was_indexed_is_shown(shelf, how):
    folder, gallery = shelf
    wanted = id_of(folder / "two.png")
    assert Thumbnails(gallery, folder).of(wanted)
    how(folder / "two.png")
    with pytest.raises(NoPicture):
        Thumbnails(gallery, folder).of(wanted)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "a\0b", "x" * 5000, ""])
def test_a_name_in_the_gallery_that_leads_out_is_not_followed(shelf, name):
    folder, gallery = shelf
    secret = folder.parent / "outside.png"
    shutil.copy(folder / "two.png", secret)
    wanted = id_of(secret)
    payload = gallery.payload(wanted)
    assert payload is not None

    class Lying:
        def payload(self, _: str) -> dict[str, str]:
            return {"file": name}

    with pytest.raises(NoPicture):
        Thumbnails(Lying(), folder).of(wanted)  # type: ignore[arg-type]


def test_a_picture_that_cannot_be_decoded_is_400(shelf, monkeypatch):
    folder, gallery = shelf
    monkeypatch.setattr(
        "pocketlens_cloud.serving.thumbnails.open_picture", lambda *_, **__: (_ for _ in ()).throw(BadPicture("x"))
    )
    with pytest.raises(BadPicture):
        Thumbnails(gallery, folder).of(id_of(folder / "two.png"))


def test_a_folder_that_is_none_is_named(gallery, tmp_path):
    with pytest.raises(GalleryError, match="is not a folder"):
        Thumbnails(gallery, tmp_path / "none")


# --- the command


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--web", "8080"], 2, "is not HOST:PORT"),
        (["--web", "127.0.0.1:99999"], 2, "is not HOST:PORT"),
        (["--web", "::1:80"], 2, "is not HOST:PORT"),
        (["--pictures", "."], 2, "give --web too"),
        (["--web", "0.0.0.0:0"], 2, "say --insecure-listen"),
        (["--web", "127.0.0.1:0", "--pictures", "/none"], 2, "is not a folder"),
        (["--web", "127.0.0.1:0"], 2, "edge"),  # the toy has no edge half
    ],
)
def test_serve_refuses_what_it_cannot_serve(indexed, toy, tmp_path, monkeypatch, page, arguments, code, said):
    shutil.copytree(indexed, tmp_path / "gallery", ignore=shutil.ignore_patterns("gallery.lock"))
    monkeypatch.setattr(gateway, "open_site", lambda *given: _open(*given, page=page))
    call = ["serve", "--gallery", str(tmp_path / "gallery"), "--bundle", str(toy.bundle), "--port", "0", *arguments]
    ran = CliRunner().invoke(app, call, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert ran.exit_code == code
    assert said in ran.output


_open = gateway.open_site


def test_questions_over_http_are_counted_and_named_as_those_over_grpc(gate, toy):
    def ended() -> dict[str, float]:
        told = metrics.read(metrics.exposition().decode())
        counted = [(labels, count) for name, labels, count in told if name == "pocketlens_requests_total"]
        return {f"{of['method']} {of['kind']}": count for of, count in counted if of["via"] == "http"}

    before, named = ended(), PROTOBUF | {"X-Request-ID": "r-17"}
    replies = [
        gate.ask("POST", "/v1/search", toy.request().SerializeToString(), named),
        gate.ask("POST", "/v1/search", toy.request(top=0).SerializeToString(), named),
        gate.ask("POST", "/v1/search", b"", {"X-Request-ID": "r-17"}),  # 415, which HTTP has a status for
        gate.ask("POST", "/v1/describe", b"", PROTOBUF),
    ]
    assert [reply.status for reply in replies] == [200, 400, 415, 200]
    assert [reply.headers["x-request-id"] == "r-17" for reply in replies] == [True, True, True, False]
    grown = {name: count - before.get(name, 0) for name, count in ended().items()}
    assert {name: count for name, count in grown.items() if count} == {
        "Search OK": 1, "Search BadQuery": 2, "Describe OK": 1,
    }  # fmt: skip
