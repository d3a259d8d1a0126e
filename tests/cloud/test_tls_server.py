"""The server's certificates: new ones without a dropped call, wrong ones with the file and the date."""

from __future__ import annotations

import http.client
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certificates
import grpc
import pytest
from pocketlens_cloud.cli import app
from pocketlens_cloud.serving import gateway, server, tls, watched
from pocketlens_cloud.serving.tls import ServerTls, TlsFiles
from pocketlens_edge import Client, Tls
from pocketlens_wire.errors import ServerFault, Unavailable
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub
from typer.testing import CliRunner

pytestmark = pytest.mark.skipif(not certificates.HAS_OPENSSL, reason="makes certificates with openssl")

CALLERS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        certificates.authority(at, name)
    for name in ("one", "two", "three", "device"):
        certificates.certificate(at, name)
    certificates.certificate(at, "stranger", ca="other")
    certificates.certificate(at, "elsewhere", names="DNS:example.org")
    certificates.certificate(at, "expired", days=("20200101", "20200301"))
    certificates.certificate(at, "coming", days=("20900101", "20900301"))
    return at


class Place:
    """Where a server's files lie, and how they are replaced."""

    def __init__(self, made: Path, at: Path) -> None:
        self._made = made
        self.files = TlsFiles(certificate=at / "server.pem", key=at / "server.key")
        self.with_clients = TlsFiles(certificate=at / "server.pem", key=at / "server.key", clients=at / "clients.pem")
        self.put("one")
        self.trust("ca")

    def put(self, name: str) -> None:
        """As a careless hand does it: one file after the other, each truncated and then written."""
        for file, end in ((self.files.certificate, "pem"), (self.files.key, "key")):
            shutil.copyfile(self._made / f"{name}.{end}", file)

    def trust(self, name: str) -> None:
        shutil.copyfile(self._made / f"{name}.pem", self.with_clients.clients or "")


@pytest.fixture
def place(made, tmp_path) -> Place:
    return Place(made, tmp_path)


def met(port: int, made: Path, own: str | None = None, protocols: tuple[str, ...] = ("h2",)) -> str:
    """The name in the certificate that a new connection meets."""
    context = ssl.create_default_context(cafile=made / "ca.pem")
    context.set_alpn_protocols(list(protocols))
    if own:
        context.load_cert_chain(made / f"{own}.pem", made / f"{own}.key")
    with (
        socket.create_connection(("127.0.0.1", port), 10) as line,
        context.wrap_socket(line, server_hostname="localhost") as shown,
    ):
        return next(value for ((name, value),) in shown.getpeercert()["subject"] if name == "commonName")


def port_of(running) -> int:
    return int(running.address.rpartition(":")[2])


# --- new certificates


class Callers:
    """Threads that ask without end: half over one connection, half over a new one each time; none asks again."""

    def __init__(self, address: str, ca: bytes, request: pb.SearchRequest) -> None:
        self._address, self._ca, self._request = address, ca, request
        self._stop, self._progress = threading.Event(), threading.Condition()
        self.asked = [0] * CALLERS
        self.failed: list[grpc.RpcError] = []
        self._threads = [threading.Thread(target=self._ask, args=(i, i % 2 == 0)) for i in range(CALLERS)]

    def _open(self) -> grpc.Channel:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(self._address, grpc.ssl_channel_credentials(self._ca), options)

    def _ask(self, which: int, is_new_each_time: bool) -> None:
        channel = self._open()
        while not self._stop.is_set():
            try:
                assert RetrievalStub(channel).Search(self._request, timeout=20).hits
            except grpc.RpcError as error:
                self.failed.append(error)
            if is_new_each_time:
                channel.close()
                channel = self._open()
            with self._progress:
                self.asked[which] += 1
                self._progress.notify_all()
        channel.close()

    def let_each_ask(self, more: int) -> None:
        aims = [asked + more for asked in self.asked]
        with self._progress:
            assert self._progress.wait_for(lambda: all(a >= b for a, b in zip(self.asked, aims, strict=True)), 30)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def test_three_new_certificates_under_load_and_no_call_is_dropped(serve, service, toy, made, place, monkeypatch):
    encryption = ServerTls(place.files)
    with (
        serve(service, credentials=encryption.credentials()) as running,
        Callers(running.address, (made / "ca.pem").read_bytes(), toy.request()) as callers,
    ):
        assert met(port_of(running), made) == "one"
        for name in ("two", "three", "one"):
            callers.let_each_ask(3)
            place.put(name)
            callers.let_each_ask(3)
            assert met(port_of(running), made) == name
    assert callers.failed == []


def test_new_authorities_for_devices_count_from_the_next_connection_on(serve, service, made, place):
    encryption = ServerTls(place.with_clients)
    assert encryption.knows_clients
    with serve(service, credentials=encryption.credentials()) as running:

        def answers(own: str) -> bool:
            with ask(running.address, made, own) as client:
                try:
                    return bool(client.describe().token_space)
                except Unavailable:
                    return False

        assert (answers("device"), answers("stranger")) == (True, False)
        place.trust("other")
        assert (answers("device"), answers("stranger")) == (False, True)


def test_describe_shows_a_server_that_asks_for_it_a_certificate(serve, service, made, place):
    with serve(service, credentials=ServerTls(place.with_clients).credentials()) as running:

        def described(*options: object) -> Any:
            asked = ["describe", "--server", running.address, "--timeout-s", "5", *map(str, options)]
            return CliRunner().invoke(app, asked)

        pair = ("--cert", made / "device.pem", "--key", made / "device.key")
        good = described("--ca", made / "ca.pem", *pair)
        assert (good.exit_code, "token_space" in good.output) == (0, True), good.output
        for options, why in (
            (("--ca", made / "ca.pem"), "asks for a certificate"),
            (("--tls", *pair), "no server answers"),  # by the public authorities
            (("--ca", made / "ca.pem", *pair[:2]), "belong together"),
            (("--ca", made / "gone.pem"), "gone.pem: cannot be read"),
        ):
            refused = described(*options)
            assert refused.exit_code == 2
            assert why in " ".join(refused.output.split())


def test_a_pair_that_cannot_be_used_is_logged_and_the_one_before_stays(
    serve, service, made, place, caplog, monkeypatch
):
    encryption = ServerTls(place.files)
    with serve(service, credentials=encryption.credentials()) as running:
        shutil.copyfile(made / "two.pem", place.files.certificate)
        assert met(port_of(running), made) == "one"
        assert met(port_of(running), made) == "one"
        said = [each.message for each in caplog.records if each.levelno == logging.ERROR]
        assert len(said) == 1, "once for one state of the files"
        assert f"{place.files.certificate}, {place.files.key}: not a certificate and its own" in said[0]
        for name, why in (("expired", "expired on Mar  1 00:00:00 2020 GMT"), ("coming", "is valid only from Jan  1")):
            place.put(name)
            assert met(port_of(running), made) == "one"
            assert f"{place.files.certificate}: {why}" in caplog.text
        place.files.certificate.unlink()
        assert met(port_of(running), made) == "one"
        assert f"{place.files.certificate}: cannot be read" in caplog.text
        place.put("three")
        assert met(port_of(running), made) == "three"


def test_a_certificate_of_tomorrow_is_taken_tomorrow_though_no_file_changes(place, monkeypatch, caplog):
    encryption = ServerTls(place.files)
    before = encryption._watched.get()
    place.put("coming")
    assert encryption._watched.get() is before
    later = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 2 * watched.AGAIN_S)
    with monkeypatch.context() as patch:
        patch.setattr(watched, "time", later)
        assert encryption._watched.get() is before, "today it is not good yet"
    assert caplog.text.count("is valid only from") == 1, "told once for one state of the files"
    monkeypatch.setattr(tls, "time", SimpleNamespace(time=lambda: 3_787_000_000.0))  # January 2090
    assert encryption._watched.get() is before, "not looked at again at once"
    later = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 4 * watched.AGAIN_S)
    monkeypatch.setattr(watched, "time", later)
    assert encryption._watched.get() is not before


@pytest.mark.parametrize(("age_s", "is_seen"), [(0.0, True), (60.0, False)])
def test_a_change_within_one_tick_of_the_clock_is_seen(age_s, is_seen):
    """Times of files are coarse; two writes of the same length may have the same, but only while they are young."""
    at = SimpleNamespace(st_ino=1, st_size=9, st_mtime=time.time() - age_s, st_mtime_ns=5, st_ctime_ns=5)
    first, second = (SimpleNamespace(stat=lambda: at, read_bytes=lambda held=held: held) for held in (b"a", b"b"))
    assert (watched._state(first) != watched._state(second)) is is_seen


def test_a_connection_ends_with_age_and_no_call_with_it(serve, service, made, place, toy, monkeypatch):
    """So that a device whose authority is no longer trusted is out at the latest then."""
    ages = [("grpc.max_connection_age_ms", 200) if name == "grpc.max_connection_age_ms" else (name, value)
            for name, value in server.OPTIONS]  # fmt: skip
    assert ages != server.OPTIONS
    monkeypatch.setattr(server, "OPTIONS", ages)
    met: set[str] = set()

    class Peers(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            handler = await continuation(details)

            async def answer(request, context):
                met.add(context.peer())
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(
                answer, handler.request_deserializer, handler.response_serializer
            )

    credentials = ServerTls(place.files).credentials()
    with serve(service, credentials=credentials, interceptors=[Peers()]) as running:
        trusted = grpc.ssl_channel_credentials((made / "ca.pem").read_bytes())
        until = time.monotonic() + 20
        # A call that meets the end on its way was never begun, and gRPC itself makes it again, unless told not to.
        with grpc.secure_channel(running.address, trusted) as channel:
            while len(met) < 3:
                assert RetrievalStub(channel).Search(toy.request(), timeout=10).hits
                assert time.monotonic() < until


# --- what the device says


@contextmanager
def ask(address: str, made: Path, own: str | None = None, ca: str = "ca") -> Iterator[Client]:
    pair = {"certificate": made / f"{own}.pem", "key": made / f"{own}.key"} if own else {}
    encryption = Tls(ca=made / f"{ca}.pem", **pair)
    with Client(address, token_space="ts-" + "0" * 16, timeout_s=5, tls=encryption) as client:
        yield client


def test_each_way_to_fail_has_a_message_of_its_own_on_the_device(serve, service, made, place, monkeypatch):
    said: dict[str, str] = {}

    def why(name: str, files: TlsFiles | None, own: str | None = None, ca: str = "ca") -> None:
        credentials = ServerTls(files).credentials() if files else None
        with serve(service, credentials=credentials) as running, ask(running.address, made, own, ca) as client:
            with pytest.raises(Unavailable) as caught:
                client.describe()
            said[name] = str(caught.value).removeprefix(f"{running.address}: ")

    why("no certificate of the device", place.with_clients)
    why("certificate of another authority", place.with_clients, own="stranger")
    why("wrong authority", place.files, ca="other")
    why("no TLS", None)
    place.put("elsewhere")
    why("wrong name", place.files)
    with monkeypatch.context() as patch:
        for name, at in (("expired", 1_580_000_000.0), ("coming", 3_787_000_000.0)):
            patch.setattr(tls, "time", SimpleNamespace(time=lambda at=at: at))  # for the server these are good
            place.put(name)
            why(name, place.files)
    expected = {
        "no certificate of the device": "may want a certificate of this device",
        "certificate of another authority": "may not accept the certificate of this device",
        "wrong authority": "comes from an authority that is not trusted here",
        "no TLS": "the server does not speak TLS",
        "wrong name": "is not for the name `127.0.0.1`",
        "expired": "the server's certificate has expired",
        "coming": "the server's certificate is not valid yet",
    }
    assert {name: expected[name] in sentence for name, sentence in said.items()} == dict.fromkeys(expected, True), said
    assert len(set(said.values())) == len(expected)


# --- at the start


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("none.pem", "one.key", "none.pem: cannot be read"),
        ("one.pem", "two.key", r"one.pem, .*two.key: not a certificate and its own, unencrypted key"),
        ("one.key", "one.key", "not a certificate and its own"),
        ("one.pem", "locked.key", "unencrypted"),
        ("expired.pem", "expired.key", "expired.pem: expired on Mar  1 00:00:00 2020 GMT; have it renewed"),
        ("coming.pem", "coming.key", "coming.pem: is valid only from Jan  1 00:00:00 2090 GMT; or this clock is wrong"),
    ],
)
def test_files_that_nobody_could_be_served_with_are_refused(made, certificate, key, message):
    locked = ("pkcs8", "-topk8", "-in", "one.key", "-out", "locked.key", "-passout", "pass:secret")
    subprocess.run(["openssl", *locked], cwd=made, check=True, capture_output=True)
    with pytest.raises(ServerFault, match=message):
        ServerTls(TlsFiles(certificate=made / certificate, key=made / key))


def test_authorities_that_are_none_are_refused_and_one_that_ends_soon_is_told(made, caplog):
    with pytest.raises(ServerFault, match=r"one\.key: holds no certificate of an authority"):
        ServerTls(TlsFiles(certificate=made / "one.pem", key=made / "one.key", clients=made / "one.key"))
    ServerTls(TlsFiles(certificate=made / "one.pem", key=made / "one.key"))
    assert "one.pem: expires on" in caplog.text and "in 2.0 days" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-cert", "one.pem"], "--tls-cert and --tls-key belong together"),
        (["--client-ca", "ca.pem"], "needs --tls-cert and --tls-key"),
        (["--audit-searches"], "needs --audit-log"),
        (["--host", "0.0.0.0", "--tls-cert", "one.pem", "--tls-key", "one.key"], "lacks asking who calls (--keys or"),
        (["--web", "0.0.0.0:0", "--tls-cert", "one.pem", "--tls-key", "one.key"], "lacks asking who calls"),
        (["--host", "0.0.0.0", "--keys", "keys.json"], "lacks encryption (--tls-cert, --tls-key):"),
        (["--host", "0.0.0.0", "--insecure-listen"], "without encryption (--tls-cert, --tls-key) and asking who calls"),
        (
            ["--keys", "none.json"],
            "none.json: there is no such file of keys; `pocketlens-cloud keys new --keys none.json",
        ),
        # nothing lacks, so that what is wrong is the gallery:
        (
            ["--host", "0.0.0.0", "--tls-cert", "one.pem", "--tls-key", "one.key", "--keys", "keys.json"],
            "error: no gallery in nowhere",
        ),
        (
            ["--host", "0.0.0.0", "--tls-cert", "one.pem", "--tls-key", "one.key", "--client-ca", "ca.pem"],
            "error: no gallery in nowhere",
        ),
    ],
)
def test_serve_listens_elsewhere_only_encrypted_and_asking_who_calls(made, toy, monkeypatch, options, message):
    monkeypatch.chdir(made)
    monkeypatch.setenv("POCKETLENS_BUNDLE", str(toy.bundle))
    monkeypatch.setenv("COLUMNS", "200")
    (made / "keys.json").write_text('{"format": 1, "keys": []}')
    refused = CliRunner().invoke(app, ["serve", "--gallery", "nowhere", "--port", "0", *options])
    assert refused.exit_code == 2
    assert message in refused.output
    if "no gallery" in message:
        assert "warning: calls" not in refused.output


@pytest.mark.parametrize(("mode", "count"), [(0o644, 1), (0o640, 0), (0o600, 0)])
def test_secrets_that_every_user_may_read_are_told_once(made, place, toy, monkeypatch, caplog, mode, count):
    monkeypatch.setenv("POCKETLENS_BUNDLE", str(toy.bundle))
    at = place.files.key.parent
    (at / "keys.json").write_text('{"format": 1, "keys": []}')
    pair = ["--tls-cert", place.files.certificate, "--tls-key", place.files.key, "--keys", at / "keys.json"]
    for file in (place.files.key, at / "keys.json"):
        file.chmod(mode)
    CliRunner().invoke(app, ["serve", "--gallery", str(at / "nowhere"), "--port", "0", *map(str, pair)])
    told = [line.getMessage() for line in caplog.records if "chmod" in line.getMessage()]
    for file in (place.files.key, at / "keys.json"):
        assert sum(f"{file}: every user" in each and f"`chmod 600 {file}`" in each for each in told) == count


# --- HTTP


@pytest.fixture
def web(serve, service, tmp_path) -> Callable:
    """`with web(ServerTls) as port:` a gateway with a page of one file."""

    @contextmanager
    def open_web(encryption: ServerTls) -> Iterator[int]:
        (tmp_path / "index.html").write_text("the page")
        site = gateway.Site(page={"index.html": tmp_path / "index.html"}, bundle={}, thumbnails=None)
        found: list[int] = []

        def beside(front):
            return gateway.serving(
                front, site, host="127.0.0.1", port=0, on_ready=found.append, encryption=encryption.context()
            )

        with serve(service, beside=beside):
            yield found[0]

    return open_web


def fetch(port: int, made: Path, own: str | None = None) -> bytes:
    context = ssl.create_default_context(cafile=made / "ca.pem")
    if own:
        context.load_cert_chain(made / f"{own}.pem", made / f"{own}.key")
    line = http.client.HTTPSConnection("localhost", port, timeout=10, context=context)
    try:
        line.request("GET", "/")
        return line.getresponse().read()
    finally:
        line.close()


def test_the_page_comes_encrypted_with_the_certificate_of_the_day(web, made, place):
    with web(ServerTls(place.files)) as port:
        for name in ("one", "two", "three"):
            place.put(name)
            assert met(port, made, protocols=("http/1.1",)) == name
            assert fetch(port, made) == b"the page"
        shutil.copyfile(made / "one.pem", place.files.certificate)
        assert met(port, made, protocols=("http/1.1",)) == "three"


def test_the_page_too_wants_a_certificate_where_devices_must_show_one(web, made, place):
    with web(ServerTls(place.with_clients)) as port:
        assert fetch(port, made, "device") == b"the page"
        for own in (None, "stranger"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                fetch(port, made, own)
        place.trust("other")
        assert fetch(port, made, "stranger") == b"the page"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            fetch(port, made, "device")


def test_a_client_that_never_begins_its_handshake_is_left(web, place, monkeypatch):
    monkeypatch.setattr(gateway, "HEAD_S", 0.1)
    with (
        web(ServerTls(place.files)) as port,
        socket.create_connection(("127.0.0.1", port), 10) as silent,
        suppress(ConnectionResetError),
    ):
        assert silent.recv(1) == b""
