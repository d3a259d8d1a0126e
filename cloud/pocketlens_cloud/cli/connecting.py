"""How a command reaches a running server: encryption, and what shows who asks. Used by describe, add and remove."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pocketlens_wire.errors import BadQuery

if TYPE_CHECKING:
    import grpc

PANEL = "Connection"
UseTls = Annotated[
    bool, typer.Option("--tls", help="Ask over TLS; the three below imply it.", rich_help_panel=PANEL)
]  # fmt: skip
Ca = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Authorities to trust, PEM (default: the public ones).", show_default=False,
        rich_help_panel=PANEL,
    ),
]  # fmt: skip
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--cert", metavar="FILE", help="Your certificate, PEM, if the server wants one.", show_default=False,
        rich_help_panel=PANEL,
    ),
]  # fmt: skip
CertificateKey = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", help="The key of that certificate, PEM.", show_default=False, rich_help_panel=PANEL
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Where the API key is, if it asks for one (default: $POCKETLENS_API_KEY).",
        show_default=False, rich_help_panel=PANEL,
    ),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Connection:
    """server: HOST:PORT; ca, certificate, key: PEM files; api_key_file: holds the key, if not the environment."""

    server: str
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    api_key_file: Path | None = None

    @property
    def is_encrypted(self) -> bool:
        return bool(self.tls or self.ca or self.certificate or self.key)

    @contextmanager
    def opened(self) -> "Iterator[tuple[grpc.Channel, tuple[tuple[str, str], ...]]]":
        """A channel, and the metadata of each call. Raises BadQuery for files that cannot be used, and for a key that
        others could read on the way."""
        import grpc
        from pocketlens_wire.api_key import demand_privacy, read_api_key

        if api_key := read_api_key(self.api_key_file):
            demand_privacy(self.server, encrypted=self.is_encrypted)
        credentials = self._credentials() if self.is_encrypted else None
        opened = grpc.secure_channel(self.server, credentials) if credentials else grpc.insecure_channel(self.server)
        with opened as channel:
            yield channel, api_key.metadata() if api_key else ()

    def _credentials(self) -> "grpc.ChannelCredentials":
        import grpc

        if (self.certificate is None) != (self.key is None):
            raise BadQuery("--cert and --key belong together: give both or neither")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise BadQuery(f"{path}: cannot be read ({error.strerror})") from error
