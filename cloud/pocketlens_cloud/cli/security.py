"""What guards `serve`: options for encryption, keys and the audit log, and where it may listen."""

import logging
import stat
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_cloud.cli.root import err, fail
from pocketlens_cloud.cli.settings import Settings

if TYPE_CHECKING:
    from pocketlens_cloud.serving.audit import Audit
    from pocketlens_cloud.serving.door import Door
    from pocketlens_cloud.serving.keys import Keys
    from pocketlens_cloud.serving.tls import ServerTls

_PANEL = "Security"
log = logging.getLogger(__name__)

InsecureListen = Annotated[
    bool,
    typer.Option(
        "--insecure-listen",
        help="Allow a --host others can reach without encryption or without asking who calls, and keys in clear.",
        rich_help_panel=_PANEL,
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        help="Certificate with its chain, PEM: encrypt every connection.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
CertificateKey = Annotated[
    Path | None,
    typer.Option("--tls-key", help="Its unencrypted key, PEM.", show_default=False, rich_help_panel=_PANEL),
]
ClientAuthorities = Annotated[
    Path | None,
    typer.Option(
        "--client-ca",
        help="Authorities, PEM: only devices with a certificate of theirs connect.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="Ask callers for one of these keys; `keys new` makes the file.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
AuditLog = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Append who asked what, as JSON lines; - is stderr.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
AuditSearches = Annotated[
    bool,
    typer.Option("--audit-searches", help="A line for each question too, not only counts.", rich_help_panel=_PANEL),
]


@dataclass(frozen=True, kw_only=True)
class Security:
    """What guards the service, opened."""

    tls: "ServerTls | None"
    keys: "Keys | None"
    audit: "Audit | None"
    insecure_listen: bool

    def door(self) -> "Door":
        from pocketlens_cloud.serving.door import Door

        return Door(keys=self.keys, audit=self.audit, allow_clear=self.insecure_listen)


def open_security(asked: Settings) -> Security:
    """What the options mean. Files that cannot be used are known here, before anything is loaded: ServerFault."""
    certificate, key, clients = asked.tls_cert, asked.tls_key, asked.client_ca
    if (certificate is None) != (key is None):
        raise typer.BadParameter("--tls-cert and --tls-key belong together; give both or neither")
    if clients and not certificate:
        raise typer.BadParameter("needs --tls-cert and --tls-key", param_hint="--client-ca")
    if asked.audit_searches and asked.audit_log is None:
        raise typer.BadParameter("needs --audit-log", param_hint="--audit-searches")
    return Security(
        tls=_open_tls(certificate, key, clients) if certificate and key else None,
        keys=_open_keys(asked.keys) if asked.keys else None,
        audit=_open_audit(asked.audit_log, each_search=asked.audit_searches) if asked.audit_log is not None else None,
        insecure_listen=asked.insecure_listen,
    )


# What is not asked for is not imported: a server's start waits for each of these.


def _open_tls(certificate: Path, key: Path, clients: Path | None) -> "ServerTls":
    from pocketlens_cloud.serving.tls import ServerTls, TlsFiles

    return ServerTls(TlsFiles(certificate=certificate, key=key, clients=clients))


def _open_keys(file: Path) -> "Keys":
    from pocketlens_wire.errors import ServerFault

    from pocketlens_cloud.serving.keys import Keys

    if not file.exists():
        raise ServerFault(f"{file}: there is no such file of keys; `pocketlens-cloud keys new --keys {file}` makes one")
    return Keys(file)


def _open_audit(to: str, *, each_search: bool) -> "Audit":
    from pocketlens_cloud.serving.audit import Audit

    return Audit(None if to == "-" else Path(to), each_search=each_search)


def warn_of_readers(asked: Settings) -> None:
    """Log a warning for each file with secrets that every user of this machine may read."""
    for file in (asked.tls_key, asked.keys):
        if file and file.stat().st_mode & stat.S_IROTH:
            log.warning(
                "%s: every user of this machine may read it; close it with `chmod 600 %s`", file, quote(str(file))
            )


def guard_host(host: str, security: Security) -> None:
    """Refuse to listen where others can, unless they are told apart and cannot read along, or it is meant."""
    from pocketlens_cloud.serving.hosts import is_loopback

    asks = security.keys is not None or (security.tls is not None and security.tls.knows_clients)
    lacks = {
        "encryption (--tls-cert, --tls-key)": security.tls is None,
        "asking who calls (--keys or --client-ca)": not asks,
    }
    lacking = " and ".join(name for name, is_lacking in lacks.items() if is_lacking)
    if is_loopback(host) or not lacking:
        return
    if not security.insecure_listen:
        fail(
            f"{host} can be reached from other machines, and this lacks {lacking}: add that, say --insecure-listen if "
            "it is meant so, or listen on 127.0.0.1"
        )
    err.print(f"warning: calls to {host} come without {lacking}", style="yellow", markup=False)
