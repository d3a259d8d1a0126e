"""What a server is to this device: its ids beside ours, the way there and back, its clock, its limits, its TLS.

Owns the checks that need a server; doctor.py runs them after its own."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, cast

import numpy as np
from pocketlens_wire.api_key import ApiKey
from pocketlens_wire.errors import BadQuery, PocketlensError, SpaceMismatch
from pocketlens_wire.limits import MAX_TOP, MAX_WORDS_BYTES
from pocketlens_wire.manifest import EdgeManifest
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1.retrieval_pb2 import DescribeReply, SearchRequest

from pocketlens_edge.check import Check, failed
from pocketlens_edge.client import Client
from pocketlens_edge.connection import LOOPBACK, Tls, addresses

ROUNDS = 20  # of asking and answering; their median and the 19th of them are told
MAX_CLOCK_OFFSET_S = 2.0  # beyond it, times in an outbox and a certificate's days are not to be trusted
SOON_DAYS = 21  # a certificate that expires earlier is warned of


@dataclass(frozen=True, kw_only=True)
class Round:
    """One Describe. began_s: Unix time before it; took_s: until its reply."""

    reply: DescribeReply
    began_s: float
    took_s: float


def examine_server(
    server: str, manifest: EdgeManifest, encoder: str, *, timeout_s: float, tls: Tls | None, api_key: ApiKey | None
) -> list[Check]:
    """The checks, in order. encoder: the id that questions will bear."""
    if len(several := addresses(server)) > 1:
        return [failed("server", BadQuery(f"{server} are {len(several)} servers. Examine one at a time."))]
    try:
        with Client(
            server, token_space=manifest.token_space, encoder_id=encoder, timeout_s=timeout_s, tls=tls, api_key=api_key
        ) as client:
            client.describe()  # opens the connection, which is no part of a round trip
            rounds = [_round(client) for _ in range(ROUNDS)]
    except PocketlensError as error:
        return [failed("server", error), _encryption(server, timeout_s, tls, answered=False)]
    its = rounds[-1].reply
    return [
        *_identity(server, its, manifest, encoder, _round_trip_ms(rounds)),
        _way(rounds),
        _clock(rounds),
        _limits(its, manifest, encoder),
        _encryption(server, timeout_s, tls, answered=True),
    ]


def _round(client: Client) -> Round:
    began, start = time.time(), time.perf_counter()
    reply = client.describe()
    return Round(reply=reply, began_s=began, took_s=time.perf_counter() - start)


# --- who it is


def _identity(
    server: str, its: DescribeReply, manifest: EdgeManifest, encoder: str, round_trip_ms: float
) -> list[Check]:
    facts: dict[str, Any] = {
        "server": server,
        "token_space": its.token_space,
        "encoders": list(its.encoders),
        "gallery_space": its.gallery_space,
        "gallery_size": its.gallery_size,
        "generation": its.generation,
        "bundle": its.bundle,
        "server_version": its.server_version,
        "provider": its.provider,
        "round_trip_ms": round_trip_ms,
        "device": {"token_space": manifest.token_space, "encoder": encoder},
    }
    try:
        _demand_same_space(server, its, manifest, encoder)
    except SpaceMismatch as error:
        return [failed("server", error, facts)]
    said = (
        f"{server}: {its.gallery_size:,} pictures in {its.gallery_space}, generation {its.generation}; "
        f"{its.server_version} on {its.provider.removesuffix('ExecutionProvider')}"
    )
    ids = (
        f"{manifest.token_space} here, {its.token_space} there; {encoder} here, there "
        f"{'the same' if len(its.encoders) == 1 else f'one of {len(its.encoders)}'}"
    )
    return [
        Check(name="server", ok=True, said=said, facts=facts),
        Check(name="ids", ok=True, said=ids, facts={"device": facts["device"], "server": _ids(its)}),
    ]


def _ids(its: DescribeReply) -> dict[str, Any]:
    return {"token_space": its.token_space, "encoders": list(its.encoders)}


def _demand_same_space(server: str, its: DescribeReply, manifest: EdgeManifest, encoder: str) -> None:
    if its.token_space != manifest.token_space:
        raise SpaceMismatch(
            f"{server} speaks token space {its.token_space} (bundle {its.bundle}), this device "
            f"{manifest.token_space} (bundle {manifest.name}). Install the edge half of the server's bundle."
        )
    if encoder not in its.encoders:
        raise SpaceMismatch(
            f"{server} accepts encoders {', '.join(its.encoders) or 'none'}, this device has "
            f"{encoder}. Install the edge half of the server's bundle."
        )


# --- the way, the clock


def _round_trip_ms(rounds: Sequence[Round]) -> float:
    return 1e3 * median(one.took_s for one in rounds)


def _way(rounds: Sequence[Round]) -> Check:
    p95 = 1e3 * float(np.quantile([one.took_s for one in rounds], 0.95, method="higher"))
    p50 = _round_trip_ms(rounds)
    return Check(
        name="round trip",
        ok=True,
        said=f"{p50:.1f} ms, p95 {p95:.1f}; {len(rounds)} of them, each without a search",
        facts={"p50_ms": p50, "p95_ms": p95, "rounds": len(rounds)},
    )


def _clock(rounds: Sequence[Round]) -> Check:
    """The server's clock against ours: its time, half-way through the quickest round (as NTP does it)."""
    best = min(rounds, key=lambda one: one.took_s)
    if not best.reply.unix_ms:
        return Check(name="clock", ok=True, said="the server does not tell its time: an older version")
    offset_s = best.reply.unix_ms / 1e3 - (best.began_s + best.took_s / 2)
    give_or_take_s = best.took_s / 2 + 0.001  # its time is cut to whole milliseconds
    apart = abs(offset_s) > MAX_CLOCK_OFFSET_S
    said = f"the server's is {_seconds(abs(offset_s))} {'ahead' if offset_s > 0 else 'behind'}"
    said += f", give or take {_seconds(give_or_take_s)}"
    if apart:
        said += ". Set this device's by NTP: an outbox's times and a certificate's days go by it"
    facts = {"offset_s": offset_s, "give_or_take_s": give_or_take_s, "limit_s": MAX_CLOCK_OFFSET_S}
    return Check(name="clock", ok=True, warn=apart, said=said, facts=facts)


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 3600:,.1f} h"


# --- limits


def _limits(its: DescribeReply, manifest: EdgeManifest, encoder: str) -> Check:
    """What the server takes against the largest question of this bundle. What it does not tell (0) is not judged."""
    largest = _largest_question_bytes(manifest, encoder)
    compared = {
        "tokens": (manifest.token_count, its.max_tokens),
        "words_bytes": (MAX_WORDS_BYTES, its.max_words_bytes),
        "request_bytes": (largest, its.max_request_bytes),
    }
    facts = {name: {"device": ours, "server": limit} for name, (ours, limit) in compared.items()}
    if its.token_width not in (0, manifest.token_width) or 0 < its.max_tokens < manifest.token_count:
        said = (
            f"this device sends {manifest.token_count} tokens of width {manifest.token_width}; the server takes "
            f"{its.max_tokens} of width {its.token_width}. Install the edge half of the server's bundle."
        )
        return Check(name="limits", ok=False, said=said, facts=facts)
    if beyond := [name for name, (ours, limit) in compared.items() if 0 < limit < ours]:
        said = "; ".join(f"{name} may be {compared[name][0]:,} here, {compared[name][1]:,} there" for name in beyond)
        return Check(name="limits", ok=True, warn=True, said=f"{said}: long words are refused there", facts=facts)
    if not its.max_request_bytes:
        return Check(name="limits", ok=True, said="the server tells none", facts=facts)
    said = f"{manifest.token_count} tokens of {its.max_tokens}; a question at most {largest:,} bytes of "
    return Check(name="limits", ok=True, said=f"{said}{its.max_request_bytes:,}", facts=facts)


def _largest_question_bytes(manifest: EdgeManifest, encoder: str) -> int:
    """With int8 tokens and as many words as there may be, no filter."""
    tokens = np.ones((manifest.token_count, manifest.token_width), np.float32)
    return SearchRequest(
        token_space=manifest.token_space,
        encoder=encoder,
        sentence=pack(tokens, Encoding.INT8),
        words="x" * MAX_WORDS_BYTES,
        top=MAX_TOP,
    ).ByteSize()


# --- encryption


def _encryption(server: str, timeout_s: float, tls: Tls | None, *, answered: bool) -> Check:
    """How the connection is encrypted. gRPC does not tell, so it is looked at beside it, on a connection of its own;
    where the server has answered over gRPC, what goes wrong on that one is a warning."""
    if server.startswith("unix:"):
        return Check(name="tls", ok=True, said="none; a socket of this machine", facts={"tls": False})
    host, _, port = server.rpartition(":")
    address = (host.strip("[]"), int(port))
    if tls is None:
        return _plain(server, speaks_tls=not answered and _speaks_tls(address, timeout_s))
    try:
        return _encrypted(address, timeout_s, tls)
    except ssl.SSLCertVerificationError as error:
        said = f"the server's certificate is refused: {error.verify_message or error.reason}"
    except OSError as error:  # ssl.SSLError is one
        said = f"no TLS connection: {getattr(error, 'reason', None) or error.strerror or error}"
    if answered:
        said = f"the server answers encrypted, but looked at directly: {said}"
    return Check(name="tls", ok=answered, warn=answered, said=said, facts={"tls": True})


def _plain(server: str, *, speaks_tls: bool) -> Check:
    facts = {"tls": False}
    if speaks_tls:
        return Check(name="tls", ok=False, said="the server speaks TLS, this device does not: add --tls", facts=facts)
    if server.startswith(LOOPBACK):
        return Check(name="tls", ok=True, said="none; the connection stays on this machine", facts=facts)
    said = "none: tokens and words can be read, and answers altered, on the way"
    return Check(name="tls", ok=True, warn=True, said=said, facts=facts)


def _speaks_tls(address: tuple[str, int], timeout_s: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said or believed
    try:
        with (
            socket.create_connection(address, timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=address[0]),
        ):
            return True
    except OSError:
        return False


def _encrypted(address: tuple[str, int], timeout_s: float, tls: Tls) -> Check:
    context = ssl.create_default_context(cafile=tls.ca)
    context.set_alpn_protocols(["h2"])
    if tls.certificate:
        context.load_cert_chain(tls.certificate, tls.key)
    with (
        socket.create_connection(address, timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=address[0]) as encrypted,
    ):
        shown = cast("dict[str, Any]", encrypted.getpeercert())
        protocol, cipher, spoken = encrypted.version(), encrypted.cipher(), encrypted.selected_alpn_protocol()
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
    days = (expires - datetime.now(UTC)).total_seconds() / 86400
    subject, issuer = _name(shown["subject"]), _name(shown["issuer"])
    said = f"{protocol}; certificate of {subject} by {issuer}, expires in {days:.0f} days ({expires:%Y-%m-%d})"
    facts = {
        "tls": True,
        "protocol": protocol,
        "cipher": cipher[0] if cipher else None,
        "alpn": spoken,
        "subject": subject,
        "issuer": issuer,
        "names": [name for _, name in shown.get("subjectAltName", ())],
        "expires": expires.isoformat(),
        "days_left": days,
    }
    return Check(name="tls", ok=True, warn=days < SOON_DAYS, said=said, facts=facts)


def _name(parts: Sequence[Sequence[tuple[str, str]]]) -> str:
    """The common name of a certificate's subject or issuer, else all of it."""
    pairs = [pair for part in parts for pair in part]
    common = [value for key, value in pairs if key == "commonName"]
    return common[0] if common else ", ".join(f"{key}={value}" for key, value in pairs) or "nobody"
