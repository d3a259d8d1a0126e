"""An encrypted connection: to the right server, and a plain sentence for each way it cannot be one."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from pocketlens_edge import AsyncClient, Client, Tls
from pocketlens_wire.errors import BadQuery, Unavailable
from pocketlens_wire.v1.retrieval_pb2_grpc import add_RetrievalServicer_to_server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")

HERE = "DNS:localhost,IP:127.0.0.1"
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


def openssl(*arguments: object, at: Path) -> bool:
    done = subprocess.run(["openssl", *map(str, arguments)], cwd=at, capture_output=True, timeout=30)
    return done.returncode == 0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """ca.pem, other.pem: authorities. good, elsewhere, expired: .pem and .key, all signed by ca."""
    at = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        assert openssl(
            "req", "-x509", *CURVE, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", at=at
        )
    for name, names, days in (("good", HERE, 2), ("elsewhere", "DNS:example.org", 2), ("expired", HERE, -1)):
        assert openssl("req", *CURVE, "-keyout", f"{name}.key", "-out", "asked.pem", "-subj", f"/CN={name}", at=at)
        (at / "names").write_text(f"subjectAltName={names}\n")
        sign = ("x509", "-req", "-in", "asked.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-extfile", "names")  # fmt: skip
        past = ("-not_before", "20200101000000Z", "-not_after", "20200102000000Z")  # newer ones refuse negative days
        assert openssl(*sign, "-days", days, at=at) or openssl(*sign, *past, at=at)
    return at


@pytest.fixture
def serving(service, certificates) -> Callable[..., object]:
    """`with serving("good") as port:` a server with that certificate; None: without TLS."""

    @contextmanager
    def serve(name: str | None, clients: str | None = None) -> Iterator[int]:
        with ThreadPoolExecutor(2) as threads:
            server = grpc.server(threads)
            add_RetrievalServicer_to_server(service, server)
            if name is None:
                port = server.add_insecure_port("127.0.0.1:0")
            else:
                key, certificate = ((certificates / f"{name}.{end}").read_bytes() for end in ("key", "pem"))
                trusted = (certificates / f"{clients}.pem").read_bytes() if clients else None
                asked = grpc.ssl_server_credentials([(key, certificate)], trusted, clients is not None)
                port = server.add_secure_port("127.0.0.1:0", asked)
            server.start()
            try:
                yield port
            finally:
                server.stop(grace=0).wait()

    return serve


def pair(at: Path, name: str) -> dict[str, Path]:
    return {"certificate": at / f"{name}.pem", "key": at / f"{name}.key"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_question_and_its_answer_over_tls(serving, certificates, encoder, tokens, host):
    tls = Tls(ca=certificates / "ca.pem")
    with serving("good") as port, Client(f"{host}:{port}", encoder, tls=tls) as client:
        assert client.search(tokens, "red").hits


def test_a_file_of_many_authorities_with_remarks(serving, certificates, encoder, tokens, tmp_path):
    both = b"# F\xc5\x91tan\xc3\xbas\xc3\xadtv\xc3\xa1ny\n".join(
        (certificates / f"{name}.pem").read_bytes() for name in ("other", "ca")
    )
    (tmp_path / "authorities.pem").write_bytes(both)
    tls = Tls(ca=tmp_path / "authorities.pem")
    with serving("good") as port, Client(f"127.0.0.1:{port}", encoder, tls=tls) as client:
        assert client.search(tokens, "red").hits


def test_the_same_in_asyncio_and_with_names_as_text(serving, certificates, encoder, tokens):
    async def ask(port: int) -> int:
        tls = Tls(ca=str(certificates / "ca.pem"))
        async with AsyncClient(f"127.0.0.1:{port}", encoder, tls=tls) as client:
            return len((await client.search(tokens, "red")).hits)

    with serving("good") as port:
        assert asyncio.run(ask(port)) == 2


def test_a_server_that_wants_to_know_who_asks(serving, certificates, encoder, tokens):
    tls = Tls(ca=certificates / "ca.pem", **pair(certificates, "good"))
    with serving("good", clients="ca") as port, Client(f"127.0.0.1:{port}", encoder, tls=tls) as client:
        assert client.search(tokens, "red").hits


WRONG = {
    "signed by a stranger": (
        "good",
        None,
        "other",
        None,
        "an authority that is not trusted here; trusted are those of",
    ),
    "signed by nobody public": ("good", None, None, None, "not trusted here; trusted are the public ones"),
    "expired": ("expired", None, "ca", None, "certificate has expired"),
    "of another name": ("elsewhere", None, "ca", None, "not for the name `127.0.0.1`"),
    "no TLS there": (None, None, "ca", None, "does not speak TLS"),
    "no certificate of ours": ("good", "ca", "ca", None, "may want a certificate of this device"),
    "not a certificate it takes": ("good", "other", "ca", "good", "may not accept the certificate of this device"),
}


@pytest.mark.parametrize(("name", "clients", "ca", "own", "message"), WRONG.values(), ids=WRONG)
def test_why_there_is_no_connection_is_said(
    serving, service, certificates, encoder, tokens, name, clients, ca, own, message
):
    tls = Tls(ca=certificates / f"{ca}.pem" if ca else None, **(pair(certificates, own) if own else {}))
    with serving(name, clients) as port, Client(f"127.0.0.1:{port}", encoder, tls=tls) as client:
        with pytest.raises(Unavailable) as caught:
            client.search(tokens, "red")
        assert str(caught.value).startswith(f"127.0.0.1:{port}: ")
        assert message in str(caught.value)
        assert "SSL" not in str(caught.value)
    assert service.calls == 0


def test_a_server_with_tls_asked_without(serving, encoder, tokens):
    with (
        serving("good") as port,
        Client(f"127.0.0.1:{port}", encoder) as client,
        pytest.raises(Unavailable, match=r"If it speaks TLS, ask it so \(--tls"),
    ):
        client.search(tokens, "red")


def test_no_server_there_is_not_a_matter_of_tls(certificates, encoder, tokens):
    with (
        Client("127.0.0.1:1", encoder, tls=Tls(ca=certificates / "ca.pem")) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.search(tokens, "red")
    assert "No Pocketlens server answers there" in str(caught.value)
    assert "TLS" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca": "none.pem"}, r"none\.pem: cannot be read \(No such file"),
        ({"ca": "good.key"}, r"good\.key: holds no certificate of an authority in PEM"),
        ({"ca": "asked.der"}, r"asked\.der: holds no certificate"),
        ({"certificate": "good.pem"}, "belong together; give both"),
        ({"key": "good.key"}, "belong together; give both"),
        ({"certificate": "good.pem", "key": "none.key"}, r"none\.key: cannot be read"),
        (
            {"certificate": "good.pem", "key": "expired.key"},
            r"good\.pem, .*expired\.key: not a certificate and its own",
        ),
        ({"certificate": "good.pem", "key": "locked.key"}, r"locked\.key: not a certificate and its own, unencrypted"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_anything_is_asked(certificates, encoder, files, message):
    (certificates / "asked.der").write_bytes(b"\x30\x82\xff\xfe")
    locked = ("pkcs8", "-topk8", "-in", "good.key", "-out", "locked.key", "-passout", "pass:secret")
    assert openssl(*locked, at=certificates)
    tls = Tls(**{name: certificates / file for name, file in files.items()})
    for kind in (Client, AsyncClient):
        with pytest.raises(BadQuery, match=message):
            kind("127.0.0.1:1", encoder, tls=tls)


# --- the command


def test_the_command_asks_over_tls(serving, certificates, run, photo):
    with serving("good", clients="ca") as port:
        ran = run(
            "search", photo, "--server", f"127.0.0.1:{port}", "--json", "--ca", certificates / "ca.pem",
            "--cert", certificates / "good.pem", "--key", certificates / "good.key",
        )  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(ran.json["hits"]) == 2


def test_the_command_says_in_one_line_what_is_wrong(serving, certificates, bundle, run, photo):
    """In a process of its own: gRPC's core would write to stderr beside it."""
    call = [sys.executable, "-m", "pocketlens_edge", "search", photo, "--tls", "--bundle", bundle, "--server"]
    with serving(None) as port:
        done = subprocess.run([*call, f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"pocketlens-edge: 127.0.0.1:{port}: the server does not speak TLS. Ask it without (no --tls, no Tls), or "
        "check the address.\n"
    )


def test_half_a_pair_is_wrong_usage(certificates, run, photo):
    ran = run("search", photo, "--cert", certificates / "good.pem")
    assert ran.code == 2
    assert "--cert and --key belong together" in ran.err


# --- as the doctor says it


def examined(run, port: int, *options: object) -> tuple[int, dict]:
    ran = run("doctor", "--server", f"127.0.0.1:{port}", "--json", *options)
    return ran.code, ran.json["checks"]


def test_the_doctor_tells_of_the_certificate(run, serving, certificates):
    with serving("good") as port:
        code, checks = examined(run, port, "--ca", certificates / "ca.pem")
    assert code == 0
    tls = checks["tls"]
    assert tls["protocol"].startswith("TLSv1.")
    assert (tls["subject"], tls["issuer"], tls["alpn"]) == ("good", "ca", "h2")
    assert tls["names"] == ["localhost", "127.0.0.1"]
    assert 1.9 < tls["days_left"] < 2.1
    assert tls["warn"] is True, "two days are soon"
    assert "certificate of good by ca, expires in 2 days" in tls["said"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("good", [], "the server speaks TLS, this device does not: add --tls"),
        ("good", ["--tls"], "certificate is refused"),
        ("expired", ["--ca", "ca.pem"], "certificate has expired"),
        ("elsewhere", ["--ca", "ca.pem"], "not valid for '127.0.0.1'"),
        (None, ["--ca", "ca.pem"], "no TLS connection"),
    ],
)
def test_the_doctor_tells_why_there_is_no_connection(run, serving, certificates, name, options, said):
    options = [certificates / option if option.endswith(".pem") else option for option in options]
    with serving(name) as port:
        code, checks = examined(run, port, "--timeout", 3, *options)
    assert code == 1
    assert checks["tls"]["ok"] is False
    assert said in checks["tls"]["said"]
    assert checks["server"]["ok"] is False


def test_a_server_that_wants_to_know_who_asks_is_examined(run, serving, certificates):
    own = pair(certificates, "good")
    with serving("good", clients="ca") as port:
        code, checks = examined(
            run, port, "--ca", certificates / "ca.pem", "--cert", own["certificate"], "--key", own["key"]
        )
    assert (code, checks["tls"]["ok"]) == (0, True)


def test_a_server_that_answers_but_cannot_be_looked_at_directly(run, serving, certificates, monkeypatch):
    """As behind a proxy, which gRPC goes through and the doctor's own look does not."""

    def refused(*_: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("pocketlens_edge.doctor_server.socket.create_connection", refused)
    with serving("good") as port:
        code, checks = examined(run, port, "--ca", certificates / "ca.pem")
    assert (code, checks["tls"]["ok"], checks["tls"]["warn"]) == (0, True, True)
    assert "answers encrypted, but looked at directly: no TLS connection" in checks["tls"]["said"]


def test_a_batch_and_an_outbox_over_tls(run, serving, certificates, photo, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.jpg").write_bytes(photo.read_bytes())
    box, ca = tmp_path / "box", certificates / "ca.pem"
    with serving("good") as port:
        to = ["--server", f"127.0.0.1:{port}", "--timeout", 2]
        assert run("batch", tmp_path / "pictures", "-o", tmp_path / "a.jsonl", *to, "--ca", ca).code == 0
        kept = run("batch", tmp_path / "pictures", "-o", tmp_path / "b.jsonl", *to, "--outbox", box)
        assert kept.code == 3, "asked without TLS nobody answers"
        assert run("outbox", "send", box, *to, "--ca", ca).code == 0
