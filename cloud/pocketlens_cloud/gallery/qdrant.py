"""A connection to a Qdrant server or cluster: what there is on it, and its errors as ours.

The only file that imports qdrant_client, which the extra `qdrant` brings. Owns addresses, keys, deadlines, trying
again, and the way from the client's errors to ours, with the address and the next step. What a collection of ours holds
is remote.py's."""

import json
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final
from urllib.parse import urlsplit

import grpc
from pocketlens_wire.errors import GalleryError, Overloaded, PocketlensError, Unavailable

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

KEY_VARIABLE: Final = "POCKETLENS_QDRANT_API_KEY"
SNAPSHOT_S: Final = 3600

# grpc tries these again by itself, within the call's own deadline: every call this file makes can be made twice.
_AGAIN: Final = {
    "methodConfig": [
        {
            "name": [{"service": "qdrant.Points"}, {"service": "qdrant.Collections"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_CHANNEL: Final = {
    "grpc.service_config": json.dumps(_AGAIN),
    "grpc.max_reconnect_backoff_ms": 2000,  # a server that is back is noticed within two seconds
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.keepalive_time_ms": 20_000,  # a peer that vanished without a word is noticed within 25 s
    "grpc.keepalive_timeout_ms": 5000,
    "grpc.max_receive_message_length": 64 << 20,
}

ReadConsistency = int | Literal["majority", "quorum", "all"]


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server is and how it is asked. A call ends after `timeout_s`, whatever happens; writes have longer."""

    url: str  # of its HTTP side, as in http://127.0.0.1:6333; snapshots go there, all else over gRPC
    grpc_port: int = 6334
    api_key: str | None = field(default=None, repr=False)
    timeout_s: int = 5
    write_timeout_s: int = 60
    read_consistency: ReadConsistency | None = None  # None: one replica's word


def read_key(file: Path | None) -> str | None:
    """The API key from a file, else from the environment; never from the command line, which others can see."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(
            f"{file} cannot be read: {error}. It should hold Qdrant's API key and nothing else"
        ) from error
    if not key or not key.isprintable() or " " in key:
        raise GalleryError(f"{file} should hold Qdrant's API key on one line, and nothing else")
    return key


@final
class Server:
    """A connection to a Qdrant server: what there is on it, and its errors as ours. Safe from several threads."""

    def __init__(self, address: Address, client: "QdrantClient | None" = None) -> None:
        """Nothing is asked yet. `client`: another client in place of one over the network.

        Raises GalleryError if qdrant-client is missing or the address is none."""
        self.models = _library()
        self.address = address
        self._given = client
        self._clients: dict[int, QdrantClient] = {}
        self._making = threading.Lock()
        self.host = _checked(address)

    @property
    def reading(self) -> "QdrantClient":
        return self.client(self.address.timeout_s)

    @property
    def writing(self) -> "QdrantClient":
        return self.client(self.address.write_timeout_s)

    def client(self, timeout_s: int) -> "QdrantClient":
        """A client whose every call ends within `timeout_s`."""
        if self._given is not None:
            return self._given
        with self._making:
            if timeout_s not in self._clients:
                self._clients[timeout_s] = _connect(self.address, timeout_s)
            return self._clients[timeout_s]

    def version(self) -> str:
        with self.asking("it does not tell its version"):
            return str(self.reading.info().version)

    def collections(self) -> list[str]:
        with self.asking("its collections cannot be listed"):
            return sorted(each.name for each in self.reading.get_collections().collections)

    def target(self, alias: str) -> str:
        """Collection that an alias points to; "" if there is no such alias."""
        with self.asking("its aliases cannot be listed"):
            found = self.reading.get_aliases().aliases
        return next((each.collection_name for each in found if each.alias_name == alias), "")

    def point(self, alias: str, collection: str) -> None:
        """One call: whoever asks sees the old target or the new one, never none."""
        models, old = self.models, self.target(alias)
        actions: list[Any] = []
        if old:
            actions.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        create = models.CreateAlias(collection_name=collection, alias_name=alias)
        actions.append(models.CreateAliasOperation(create_alias=create))
        with self.asking(f"alias {alias} cannot be pointed to {collection}"):
            self.writing.update_collection_aliases(actions)

    def info(self, collection: str) -> "models.CollectionInfo":
        with self.asking(f"collection {collection} cannot be read"):
            return self.reading.get_collection(collection)

    def metadata(self, collection: str, key: str) -> str | None:
        """Text under `key` of a collection's metadata."""
        held = self.info(collection).config.metadata or {}
        value = held.get(key)
        return value if isinstance(value, str) else None

    def set_metadata(self, collection: str, key: str, value: str) -> None:
        with self.asking(f"the metadata of collection {collection} cannot be written"):
            self.writing.update_collection(collection, metadata={key: value})

    def drop(self, collection: str) -> None:
        with self.asking(f"collection {collection} cannot be dropped"):
            self.writing.delete_collection(collection)

    def nodes(self, collection: str) -> int:
        """Number of nodes that hold a part of a collection."""
        with self.asking(f"the shards of collection {collection} cannot be listed"):
            spread = self.reading.collection_cluster_info(collection)
        return len({spread.peer_id, *(shard.peer_id for shard in spread.remote_shards)})

    def snapshot(self, collection: str) -> tuple[str, int, str]:
        """Make a snapshot on the server: (its name, bytes, SHA-256, "" where the server tells none)."""
        with self.asking(f"no snapshot of collection {collection} was made"):
            made = self.client(SNAPSHOT_S).create_snapshot(collection)
        if made is None:
            raise GalleryError(f"Qdrant at {self.address.url} made no snapshot of {collection}: its log says why")
        return made.name, made.size, made.checksum or ""

    def recover(self, collection: str, location: str) -> None:
        """Make `collection` of a snapshot: a URL or a file:// path that the server itself can read."""
        with self.asking(f"collection {collection} cannot be made of {location}"):
            self.client(SNAPSHOT_S).recover_snapshot(
                collection, location, priority=self.models.SnapshotPriority.SNAPSHOT
            )

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Turn every error of the client into ours, beginning with the server's address and `what`."""
        try:
            yield
        except PocketlensError:
            raise
        except Exception as error:
            raise self._ours(error, what) from error

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _ours(self, error: Exception, what: str) -> PocketlensError:
        """gRPC's status and HTTP's, as far as they differ in what a person can do."""
        at, (code, details) = f"Qdrant at {self.address.url}", _status(error)
        match code:
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                return Unavailable(
                    f"{at} does not answer on {self.host}:{self.address.grpc_port} ({details}): "
                    "is it running, and are host and gRPC port right? It is asked again with the next question"
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return Unavailable(f"{at} did not answer in time ({what}): it is overloaded, or too far away")
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                return GalleryError(f"{at} refused the API key ({details}): set {KEY_VARIABLE}, or name a file with it")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return Overloaded(f"{at} has more to do than it allows ({details}): ask again later")
            case grpc.StatusCode.NOT_FOUND:
                return GalleryError(f"{at}: {what}: {details}. `pocketlens-cloud gallery list` says what there is")
            case _:
                return GalleryError(f"{at}: {what}: {details}")


def _library() -> Any:
    """qdrant_client.models; importing it takes a third of a second, so only who needs a server does."""
    try:
        from qdrant_client import models
    except ImportError as error:
        raise GalleryError("a Qdrant server needs qdrant-client: pip install 'pocketlens[qdrant]'") from error
    return models


def _connect(address: Address, timeout_s: int) -> "QdrantClient":
    from qdrant_client import QdrantClient

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of a key without encryption: _checked refuses it off this machine
        return QdrantClient(
            url=address.url,
            grpc_port=address.grpc_port,
            prefer_grpc=True,
            api_key=address.api_key,
            timeout=timeout_s,
            check_compatibility=False,  # it would ask over HTTP in a thread of its own, and print
            grpc_options=dict(_CHANNEL),
            # Certificates of authorities take a tenth of a second to load, for nothing where nothing is encrypted.
            verify=urlsplit(address.url).scheme == "https",
        )


def _checked(address: Address) -> str:
    """The host. A key goes to other machines encrypted or not at all."""
    parts = urlsplit(address.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise GalleryError(f"{parts.scheme}://{parts.hostname or ''}: name Qdrant's address like http://127.0.0.1:6333")
    if address.api_key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise GalleryError(
            f"the API key would go to {parts.hostname} unencrypted: use https://, or a server without a key"
        )
    return parts.hostname


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What went wrong in gRPC's terms, over whichever protocol; and in words, on one line."""
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return error.code(), " ".join((error.details() or "no details").split())
    said = " ".join(str(error).split()) or type(error).__name__
    of_http = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
    match type(error).__name__:
        case "ResourceExhaustedResponse":
            return grpc.StatusCode.RESOURCE_EXHAUSTED, said
        case "UnexpectedResponse":
            return grpc.StatusCode[of_http.get(getattr(error, "status_code", 0), "UNKNOWN")], said
        case "ResponseHandlingException":
            return grpc.StatusCode.UNAVAILABLE, said or repr(getattr(error, "source", error))
        case _:
            return grpc.StatusCode.UNKNOWN, said
