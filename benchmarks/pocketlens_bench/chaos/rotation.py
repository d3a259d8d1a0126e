"""Certificate and key replaced again and again while clients ask: no call dropped, the old ones refused at once.

Four threads ask without a pause: two over a connection kept open throughout, two over a new one each time. None tries
again, so every dropped call is seen. A new key is given to all of them before the old one is revoked, as an operator
would do it. Called by driver.py."""

from __future__ import annotations

import random
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, final

import grpc
from pocketlens_cloud.serving import keys
from pocketlens_edge.client import Answer, Client
from pocketlens_edge.connection import Tls
from pocketlens_wire.errors import PocketlensError, ServerFault, Unauthenticated
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.chaos import certificates
from pocketlens_bench.chaos.asking import patiently
from pocketlens_bench.chaos.judging import Asked, Right, fact, hits_of, judged, tally
from pocketlens_bench.chaos.setting import Setting
from pocketlens_bench.server import serving
from pocketlens_bench.world import OnProgress

KEPT, NEW = "connections kept open", "a new connection each time"
ASKERS = (KEPT, NEW, KEPT, NEW)
STUCK_S = 120.0  # for each asker to have been answered a few times; far beyond any deadline
OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]  # no second try; a connection each


@final
class Askers:
    """The threads. key: with which questions that begin from now on are asked."""

    def __init__(self, line: Line, key: str, questions: list[pb.SearchRequest], right: Right) -> None:
        self._line, self.key, self._questions, self._right = line, key, questions, right
        self._stop, self._progress = threading.Event(), threading.Condition()
        self.asked: list[list[Asked]] = [[] for _ in ASKERS]
        self._threads = [threading.Thread(target=self._ask, args=(at,)) for at in range(len(ASKERS))]

    def let_each_ask(self, more: int = 2) -> None:
        """Wait until each has so many answers more; with two, every question that began before is over."""
        aims = [len(asked) + more for asked in self.asked]

        def reached() -> bool:
            return all(len(asked) >= aim for asked, aim in zip(self.asked, aims, strict=True))

        with self._progress:
            if not self._progress.wait_for(reached, STUCK_S):
                raise ServerFault(f"a client had not {more} answers within {STUCK_S:g} s")

    def rows(self) -> list[dict[str, Any]]:
        return [
            tally(kind, [one for name, asked in zip(ASKERS, self.asked, strict=True) if name == kind for one in asked])
            for kind in dict.fromkeys(ASKERS)
        ]

    def _ask(self, at: int) -> None:
        kept = self._line.channel() if ASKERS[at] == KEPT else None
        number = at
        while not self._stop.is_set():
            which, began = number % len(self._questions), perf_counter()
            said = judged(lambda: self._line.ask(self.key, self._questions[which], kept), self._right, which)  # noqa: B023
            with self._progress:
                self.asked[at].append(Asked(began, 0.0, perf_counter() - began, *said))
                self._progress.notify_all()
            number += 1
        if kept:
            kept.close()

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Line:
    """The way to one encrypted server."""

    def __init__(self, address: str, ca: Path, timeout_s: float) -> None:
        self.address, self._tls, self._timeout_s = address, Tls(ca=ca), timeout_s
        self._trusted = ssl.create_default_context(cafile=ca)
        self._trusted.set_alpn_protocols(["h2"])

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(self.address, self._tls.credentials(), OPTIONS)

    def ask(self, key: str, question: pb.SearchRequest, kept: grpc.Channel | None) -> Answer:
        """Over `kept`, or a connection of its own. Raises PocketlensError."""
        with _closing(kept or self.channel(), keep=kept is not None) as channel:
            return Client(
                self.address, token_space=question.token_space, api_key=key, timeout_s=self._timeout_s, channel=channel
            ).ask(question)

    def shown(self) -> str:
        """The name in the certificate that a new connection meets. Raises OSError where none comes about in time."""
        host, _, port = self.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), self._timeout_s) as plain,
            self._trusted.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            subject: Any = (encrypted.getpeercert() or {})["subject"]
            return dict(pair for ((*pair,),) in subject)["commonName"]


@contextmanager
def _closing(channel: grpc.Channel, *, keep: bool) -> Iterator[grpc.Channel]:
    try:
        yield channel
    finally:
        if not keep:
            channel.close()


def measure(setting: Setting, on_progress: OnProgress) -> list[dict[str, Any]]:
    """The table of what the clients saw. Needs the openssl command."""
    at = Path(tempfile.mkdtemp(dir=setting.home, prefix="rotation-"))
    ca = certificates.authority(at)
    place = Place(at)
    place.put("turn-0")
    key, kept = keys.new(place.keys, ["search"])
    more = ("--tls-cert", place.certificate, "--tls-key", place.key, "--keys", place.keys)
    with serving(setting.bundle, setting.shop, threads=1, more=more) as server:
        line = Line(server.address, ca, setting.sizes.timeout_s)
        questions = [pb.SearchRequest.FromString(each) for each in setting.questions]
        undisturbed = [patiently(lambda: line.ask(key, question, None)) for question in questions]  # noqa: B023
        right = Right({undisturbed[0].generation: [hits_of(each) for each in undisturbed]}, setting.contents)
        with Askers(line, key, questions, right) as askers:
            counts = _rotated(setting, place, line, askers, (key, kept.id), on_progress)
    return [
        {
            "key": "rotation",
            "title": "Certificate and key replaced",
            "rows": askers.rows(),
            "facts": [
                fact("certificates and keys replaced", counts["turns"]),
                fact("new connections that met an older certificate", counts["old_certificate"], must_be_zero=True),
                fact("new connections that did not come about", counts["no_connection"], must_be_zero=True),
                fact("questions with a revoked key that were answered", counts["old_key"], must_be_zero=True),
                fact("refused otherwise than as such", counts["other_refusal"], must_be_zero=True),
            ],
        }
    ]


@final
class Place:
    """Where the server's files lie, and how they are replaced."""

    def __init__(self, at: Path) -> None:
        self._at = at
        self.certificate, self.key, self.keys = (at / name for name in ("server.pem", "server.key", "keys.json"))

    def put(self, name: str) -> None:
        """A new pair, as a careless hand copies it: one file after the other, each truncated and then written."""
        for made, served in zip(certificates.certificate(self._at, name), (self.certificate, self.key), strict=True):
            shutil.copyfile(made, served)


def _rotated(
    setting: Setting, place: Place, line: Line, askers: Askers, first: tuple[str, str], on_progress: OnProgress
) -> dict[str, int]:
    """Replace both until the time is over. The old key is tried over a connection that was open and over a new one."""
    draws, began, (old, old_id) = random.Random(setting.seed), perf_counter(), first
    counted = ("turns", "old_certificate", "no_connection", "old_key", "other_refusal")
    counts: dict[str, int] = dict.fromkeys(counted, 0)
    pause, question, kept = threading.Event(), pb.SearchRequest.FromString(setting.questions[0]), line.channel()
    patiently(lambda: line.ask(old, question, kept))
    while not counts["turns"] or perf_counter() - began < setting.sizes.seconds:
        counts["turns"] += 1
        name = f"turn-{counts['turns']}"
        place.put(name)
        try:
            counts["old_certificate"] += line.shown() != name
        except OSError:
            counts["no_connection"] += 1
        new, record = keys.new(place.keys, ["search"])
        askers.key = new
        askers.let_each_ask()
        keys.revoke(place.keys, old_id)
        for channel in (kept, None):
            said = _refusal(lambda: line.ask(old, question, channel))  # noqa: B023
            counts["old_key"] += said is None
            counts["other_refusal"] += said not in (None, Unauthenticated)
        askers.let_each_ask()
        old, old_id = new, record.id
        on_progress("replace certificate and key", counts["turns"], counts["turns"])
        pause.wait(draws.uniform(0, setting.sizes.pause_s))
    kept.close()
    return counts


def _refusal(ask: Callable[[], Answer]) -> type[PocketlensError] | None:
    try:
        ask()
    except PocketlensError as error:
        return type(error)
    return None
