"""How this device is connected with a server: address, deadline, retries, caps, TLS; and why it could not be.

Owns the channels of both kinds, blocking and asyncio's, and the way from a failed call to an error in plain
words. Called by client.py; knows no question and no answer."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio
from pocketlens_wire.api_key import ApiKey, demand_privacy
from pocketlens_wire.errors import (
    KIND_METADATA,
    RETRY_METADATA,
    BadQuery,
    Overloaded,
    PocketlensError,
    ServerFault,
    TooLate,
    Unavailable,
    error_from_status,
)
from pocketlens_wire.limits import MAX_REQUEST_BYTES

from pocketlens_edge.traces import HEADER

MAX_REPLY_BYTES = 4 * 1024 * 1024  # 1,000 hits with 4 KB of payload each
ATTEMPTS = 4  # the first and three more: about 0.1, 0.2 and 0.4 s apart, enough for a server to restart
_ADDRESS = re.compile(r"(\[[^\]\s]+\]|[^:/\s\[\]]+):\d{1,5}|unix:\S+")
LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")  # good enough for a proxy; a key asks api_key.is_local

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "pocketlens.v1.Retrieval"}],
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],  # a busy server is not asked at once: retry_after_s says when
            },
        }
    ]
}

# Of several replicas a client takes one at random and stays while it answers: one handshake, and all are used alike.
_ANY_ORDER = [{"pick_first": {"shuffleAddressList": True}}]

_File: TypeAlias = "str | os.PathLike[str]"
Trace: TypeAlias = Callable[[], str]  # gives a traceparent, a new one for each question


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How the connection is encrypted, and who shows what to whom. Files are PEM.

    ca: the authorities to trust; None takes gRPC's own list, which holds the public ones.
    certificate, key: what this device shows to a server that wants to know who asks; both or neither."""

    ca: _File | None = None
    certificate: _File | None = None
    key: _File | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises BadQuery, naming the file, for what cannot be used: gRPC would only say that no
        connection came about."""
        if (self.certificate is None) != (self.key is None):
            raise BadQuery("TLS: a certificate and its key belong together; give both or neither.")
        ca = None if self.ca is None else _authorities(Path(self.ca))
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(ca)
        certificate, key = Path(self.certificate), Path(self.key)
        _check_pair(certificate, key)
        return grpc.ssl_channel_credentials(ca, _read(key), _read(certificate))


def key_metadata(key: ApiKey | str | None, server: str, *, encrypted: bool) -> tuple[tuple[str, str], ...]:
    """What goes with each call to `server`. Raises BadQuery for what is no key, and where others could read it."""
    if key is None:
        return ()
    held = ApiKey(key) if isinstance(key, str) else key
    for address in addresses(server):
        demand_privacy(address, encrypted=encrypted)
    return held.metadata()


def trace_metadata(trace: Trace | None) -> tuple[tuple[str, str], ...]:
    """What goes with one call so that it can be followed."""
    return () if trace is None else ((HEADER, trace()),)


def addresses(server: str) -> list[str]:
    """The replicas that `server` names: one HOST:PORT or unix:PATH, or several IP:PORT with commas between."""
    return [server] if server.startswith("unix:") else server.split(",")


def open_channel(server: str, tls: Tls | None = None) -> grpc.Channel:
    """A channel with our retries and message caps; it connects on first use. Of several addresses it takes one at
    random, and another when that one is gone; so do the retries of a call that was under way.

    Raises BadQuery for what is not an address, and for files of `tls` that cannot be used."""
    target, options = _target(server, tls), _options(server)
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, tls.credentials(), options=options)


def open_async_channel(server: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """The same for asyncio; it belongs to the running event loop."""
    target, options = _target(server, tls), _options(server)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, tls.credentials(), options=options)


def check_server(server: str, tls: Tls | None = None) -> None:
    """Raise the BadQuery that opening a channel would."""
    _target(server, tls)
    if tls is not None:
        tls.credentials()


def plain_error(
    failed: grpc.Call | grpc.aio.AioRpcError, *, server: str, timeout_s: float, tls: Tls | None
) -> PocketlensError:
    """The error for a failed call, in plain words. Returned, not raised."""
    told = dict(failed.trailing_metadata() or ())
    kind, request = told.get(KIND_METADATA), told.get("x-request-id")
    details = failed.details() or ""
    error = error_from_status(failed.code(), details, str(kind))
    match error:
        case TooLate():
            return TooLate(f"{server}, {timeout_s:g} s allowed: {error}")
        case Unavailable():
            return Unavailable(f"{server}: {_why_no_connection(server, details, tls) or error}{_hint(details, tls)}")
        case ServerFault() if request:
            return ServerFault(f"{server}: {error} It calls this request `{request!s}`.")
        case Overloaded():
            return Overloaded(f"{server}: {error}", retry_after_s=_retry_after_s(told.get(RETRY_METADATA)))
        case ServerFault():
            return ServerFault(f"{server}: {error}")
        case _:
            return error


def _retry_after_s(milliseconds: str | bytes | None) -> float:
    """What the server said of when to ask again; a second if it did not, as gRPC itself and proxies do not."""
    said = str(milliseconds)
    return int(said) / 1e3 if re.fullmatch(r"\d{1,9}", said, re.ASCII) else 1.0


def _target(server: str, tls: Tls | None) -> str:
    """What gRPC calls `server`. Raises BadQuery for what it could not connect with."""
    found = addresses(server)
    for address in found:
        port = "0" if address.startswith("unix:") else address.rpartition(":")[2]
        if not _ADDRESS.fullmatch(address) or int(port) > 65535:  # gRPC would take it modulo 65,536
            raise BadQuery(f"server `{address}` is not HOST:PORT, as in 127.0.0.1:50551.")
    if len(found) == 1:
        return server
    versions = {_ip_version(address) for address in found}
    if len(versions) > 1 or not versions <= {4, 6}:
        raise BadQuery(
            f"servers `{server}`: several are named by IPv4 addresses, or all by IPv6 addresses, as in "
            "10.0.0.5:50551,10.0.0.6:50551. Or give their addresses one name in DNS, and ask that."
        )
    if tls:
        raise BadQuery(
            f"servers `{server}`: over TLS a certificate is checked against one name. Give the addresses one name in "
            "DNS that the certificate has, and ask that."
        )
    return f"ipv{versions.pop()}:{server}"


def _ip_version(address: str) -> int:
    """4 or 6; 0 for a name."""
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).version
    except ValueError:
        return 0


def _options(server: str) -> list[tuple[str, str | int]]:
    found = addresses(server)
    config = _SERVICE_CONFIG if len(found) == 1 else {**_SERVICE_CONFIG, "loadBalancingConfig": _ANY_ORDER}
    return [
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(config)),
        ("grpc.initial_reconnect_backoff_ms", 100),  # so that a retry meets a server that has just come up
        ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        # Every byte up counts: no pings to probe bandwidth, no list of compressions (tokens do not compress).
        ("grpc.http2.bdp_probe", 0),
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # A proxy in the environment is for the world outside, and gRPC would use it for this machine too.
        ("grpc.enable_http_proxy", int(not all(address.startswith(LOOPBACK) for address in found))),
    ]


def _authorities(path: Path) -> bytes:
    held = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, ValueError) as error:
        raise BadQuery(f"{path}: holds no certificate of an authority in PEM form. Name another file.") from error
    return held


def _check_pair(certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        _read(path)
    try:
        # An encrypted key would be asked for on the terminal; gRPC could not open it either.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise BadQuery(
            f"{certificate}, {key}: not a certificate and its own, unencrypted key in PEM form. Name the two files "
            "that belong together."
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadQuery(f"{path}: cannot be read ({error.strerror}).") from error


def _why_no_connection(server: str, details: str, tls: Tls | None) -> str:
    """What is wrong with TLS there, from gRPC's details; empty if it is not that."""
    if tls is None:
        return ""
    if "certificate has expired" in details:
        return "the server's certificate has expired. Have it renewed; or this device's clock is wrong."
    if "certificate is not yet valid" in details:
        return "the server's certificate is not valid yet. Check this device's clock."
    if "Hostname Verification Check failed" in details:
        host = server.rpartition(":")[0]
        return f"the server's certificate is not for the name `{host}`. Ask it by a name that the certificate has."
    if "CERTIFICATE_VERIFY_FAILED" in details:
        trusted = f"those of {tls.ca}" if tls.ca else "the public ones"
        return (
            f"the server's certificate comes from an authority that is not trusted here; trusted are {trusted}. "
            "Name the file of the right authority (--ca, or Tls(ca=...))."
        )
    if "WRONG_VERSION_NUMBER" in details:
        return "the server does not speak TLS. Ask it without (no --tls, no Tls), or check the address."
    return ""


def _hint(details: str, tls: Tls | None) -> str:
    """What a connection that was closed at once may mean: the other side does not tell."""
    if "Socket closed" not in details:
        return ""
    if tls is None:
        return " If it speaks TLS, ask it so (--tls, or Tls(...))."
    if tls.certificate is None:
        return " It may want a certificate of this device (--cert and --key, or Tls(certificate=..., key=...))."
    return " It may not accept the certificate of this device."
