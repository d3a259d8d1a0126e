"""Where versions of a gallery lie, as the commands are told: a directory here, or a name on a Qdrant server."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pocketlens_cloud.gallery.qdrant import Server
    from pocketlens_cloud.gallery.qdrant_terms import CollectionSettings
    from pocketlens_cloud.gallery.versions import Versions

Url = Annotated[
    str | None,
    typer.Option(
        "--qdrant",
        metavar="URL",
        help="Qdrant server or cluster, by its HTTP address, as in http://127.0.0.1:6333.",
        show_default=False,
    ),
]
GrpcPort = Annotated[int, typer.Option("--qdrant-grpc-port", min=1, max=65535, help="Its gRPC port.")]
QdrantKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--qdrant-key-file",
        help="File with its API key (default: $POCKETLENS_QDRANT_API_KEY); never on the command line.",
        show_default=False,
    ),
]
TimeoutS = Annotated[int, typer.Option("--qdrant-timeout-s", min=1, help="Seconds until a read of it is given up.")]
Consistency = Annotated[
    str | None,
    typer.Option(
        "--qdrant-read-consistency",
        metavar="N|majority|quorum|all",
        help="Replicas that must agree on a read (default: one's word).",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the options said."""

    name: str
    url: str | None
    grpc_port: int = 6334
    key_file: Path | None = None
    timeout_s: int = 5
    consistency: str | None = None

    def server(self) -> "Server":
        from pocketlens_cloud.gallery.qdrant import Address, Server, read_key

        wanted = self.consistency
        if (
            wanted is not None
            and wanted not in ("majority", "quorum", "all")
            and not (wanted.isdecimal() and int(wanted))
        ):
            raise typer.BadParameter("use a number, majority, quorum or all", param_hint="--qdrant-read-consistency")
        return Server(
            Address(
                url=self.url or "",
                grpc_port=self.grpc_port,
                api_key=read_key(self.key_file),
                timeout_s=self.timeout_s,
                read_consistency=int(wanted) if wanted and wanted.isdecimal() else wanted,  # pyright: ignore[reportArgumentType]
            )
        )


@contextmanager
def open_versions(place: Place, layout: "CollectionSettings | None" = None) -> "Iterator[Versions]":
    """The versions there. `layout`: of collections that are made."""
    if place.url is None:
        from pocketlens_cloud.gallery.folder import FolderVersions

        yield FolderVersions(Path(place.name))
        return
    from pocketlens_cloud.gallery.collections import CollectionVersions
    from pocketlens_cloud.gallery.qdrant_terms import LAYOUT

    server = place.server()
    try:
        yield CollectionVersions(server, place.name, layout or LAYOUT)
    finally:
        server.close()
