"""The server's certificate, for gRPC and for the gateway: what is accepted, and a new one without a restart.

Owns which files make an encrypted server. At each new connection they are looked at: a new pair is used from that
connection on; a pair that is half written, does not belong together or is not valid today is logged with its file, and
the one before stays. Connections that are open keep what they began with. Probed with grpcio 1.85: its dynamic
credentials work under grpc.aio, and their callback runs in gRPC's own threads."""

import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from pocketlens_wire.errors import ServerFault

from pocketlens_cloud.serving.watched import Watched

log = logging.getLogger(__name__)

SOON_DAYS: Final = 14  # a certificate that ends so soon is worth a warning
_DAY_S: Final = 86_400
_NO_CHECK_TIME: Final = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which module ssl has no name for


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files. certificate: with its chain; key: unencrypted; clients: the authorities whose certificates devices
    must show, None: devices show none."""

    certificate: Path
    key: Path
    clients: Path | None = None


@dataclass(frozen=True)
class _Loaded:
    for_grpc: Any  # grpc's ServerCertificateConfiguration
    for_http: ssl.SSLContext


class ServerTls:
    """An encrypted server's credentials, kept in step with its files.

    Raises ServerFault, naming file and date, for files that nobody could be served with."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._paths = [files.certificate, files.key, *([files.clients] if files.clients else [])]
        self._watched = Watched(self._paths, self._load, what="the server's certificates")

    @property
    def knows_clients(self) -> bool:
        """Whether a device must show a certificate."""
        return self._files.clients is not None

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC, which asks before each handshake."""
        initial = self._watched.get()
        told = [initial]  # what gRPC has; building its handshaker anew for each connection would be waste

        def fetch() -> Any:
            now = self._watched.get()
            if now is told[0]:
                return None
            told[0] = now
            return now.for_grpc

        return grpc.dynamic_ssl_server_credentials(initial.for_grpc, fetch, self.knows_clients)

    def context(self) -> ssl.SSLContext:
        """For HTTP: each handshake is handed to the context of the day, once the client has said hello."""
        first = _context(self._files)

        def hand_over(connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
            connection.context = self._watched.get().for_http

        first.sni_callback = hand_over  # called without a name too
        return first

    def _load(self, held: Sequence[bytes]) -> _Loaded:
        certificate, key, *clients = held
        context = _context(self._files)
        _check_dates(self._files)
        try:
            is_steady = [path.read_bytes() for path in self._paths] == held  # module ssl reads for itself
        except OSError:
            is_steady = False
        if not is_steady:
            raise ServerFault(f"{', '.join(map(str, self._paths))}: are being written")
        configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], *clients)
        return _Loaded(configuration, context)


def _context(files: TlsFiles) -> ssl.SSLContext:
    """What HTTP is served with. Raises ServerFault for files that are not what they should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would be asked for on the terminal.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ServerFault(
            f"{files.certificate}, {files.key}: not a certificate and its own, unencrypted key in PEM form ({error})"
        ) from error
    if files.clients:
        try:
            context.load_verify_locations(files.clients)
        except (ssl.SSLError, ValueError, OSError) as error:
            raise ServerFault(f"{files.clients}: holds no certificate of an authority in PEM form ({error})") from error
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session is not verified again, also when the authorities have changed; 1.3 resumes by tickets alone.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _check_dates(files: TlsFiles) -> None:
    """Raise ServerFault, with the date, for a certificate that no device would accept today."""
    shown = _shown(files)
    begins, ends = (ssl.cert_time_to_seconds(str(shown[name])) for name in ("notBefore", "notAfter"))
    now = time.time()
    if now > ends:
        raise ServerFault(f"{files.certificate}: expired on {shown['notAfter']}; have it renewed")
    if now < begins:
        raise ServerFault(f"{files.certificate}: is valid only from {shown['notBefore']}; or this clock is wrong")
    if ends - now < SOON_DAYS * _DAY_S:
        log.warning("%s: expires on %s, in %.1f days", files.certificate, shown["notAfter"], (ends - now) / _DAY_S)


def _shown(files: TlsFiles) -> dict[str, Any]:
    """What the certificate says. Module ssl tells it only of one that it met in a handshake, so there is one in memory,
    in which the certificate itself is trusted and dates do not matter."""
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.load_cert_chain(files.certificate, files.key, password=lambda: "")
    theirs.check_hostname = False
    theirs.load_verify_locations(files.certificate)
    theirs.verify_flags = ssl.VerifyFlags(ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ours.wrap_bio(up, down, server_side=True)
    client = theirs.wrap_bio(down, up)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            raise ServerFault(f"{files.certificate}: no device would accept it as a server's ({error})") from error
    return client.getpeercert() or {}
