"""`pocketlens-cloud add` and `remove`: single pictures into and out of the gallery of a running server."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlens_cloud.cli.connecting import Ca, Certificate, CertificateKey, Connection, KeyFile, UseTls
from pocketlens_cloud.cli.root import AsJson, app, err, out, plain_errors

if TYPE_CHECKING:
    from pocketlens_wire.v1 import gallery_pb2 as pb
    from pocketlens_wire.v1.gallery_pb2_grpc import GalleryStub

_ID = re.compile(r"[0-9a-f]{32}")

Server = Annotated[str, typer.Option(metavar="HOST:PORT", help="A running server, started with --writable.")]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each picture.")]


@app.command()
def add(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Picture files, at most 16 MiB each.")],
    server: Server = "127.0.0.1:50551",
    payload: Annotated[
        str, typer.Option(metavar="JSON", help='What to store with each of them, as {"kind": "shoe"}.')
    ] = "{}",
    timeout_s: TimeoutS = 30.0,
    as_json: AsJson = False,
    tls: UseTls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    api_key_file: KeyFile = None,
) -> None:
    """Add pictures to the gallery of a running server, which finds them from then on.

    Prints the id of each. A picture that is there already gets the payload and is not added twice.

    [bold]Example[/bold]

    pocketlens-cloud add shoe.jpg --payload '{"kind": "shoe", "price": 59.9}' --server 127.0.0.1:50551
    """
    values = _payload(payload)
    failed = 0
    asking = Connection(server=server, tls=tls, ca=ca, certificate=certificate, key=key, api_key_file=api_key_file)
    with plain_errors(), _stub(asking, timeout_s) as stub:
        from pocketlens_wire.errors import BadPicture, BadQuery

        for file in files:
            try:
                reply = stub.add(_bytes(file), values)
            except (BadPicture, BadQuery) as error:  # of this picture; the others may be good
                err.print(f"{file}: {error}", style="red", markup=False, highlight=False)
                failed += 1
                continue
            facts = {"file": str(file), "id": reply.id, "was_there": reply.was_there, "generation": reply.generation}
            said = f"{reply.id}  {file}{'  (was there)' if reply.was_there else ''}"
            out.print(json.dumps(facts) if as_json else said, markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def remove(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="32 hex digits each, as hits and `add` tell them.")],
    server: Server = "127.0.0.1:50551",
    timeout_s: TimeoutS = 30.0,
    as_json: AsJson = False,
    tls: UseTls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    api_key_file: KeyFile = None,
) -> None:
    """Remove pictures from the gallery of a running server. Their files are not touched.

    An id the gallery lacks is passed over; exit code 1 if it has none of them.

    [bold]Example[/bold]

    pocketlens-cloud remove 0f343b0931126a20f133d67c2b018a3b --server 127.0.0.1:50551
    """
    asking = Connection(server=server, tls=tls, ca=ca, certificate=certificate, key=key, api_key_file=api_key_file)
    with plain_errors(), _stub(asking, timeout_s) as stub:
        from pocketlens_wire.limits import MAX_REMOVED

        _check_ids(ids)
        parts = [ids[at : at + MAX_REMOVED] for at in range(0, len(ids), MAX_REMOVED)]
        replies = [stub.remove(part) for part in parts]
        removed, size = sum(reply.removed for reply in replies), replies[-1].gallery_size
        facts = {"removed": removed, "gallery_size": size, "generation": replies[-1].generation}
        said = f"{removed} removed, {size} pictures left"
        out.print(json.dumps(facts) if as_json else said, markup=False, highlight=False)
    if not removed:
        err.print("the gallery has no such picture", style="red", markup=False, highlight=False)
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Asker:
    """A server's Gallery; raises the PocketlensError that its answer, or its silence, means."""

    stub: "GalleryStub"
    timeout_s: float
    metadata: tuple[tuple[str, str], ...]

    def add(self, data: bytes, payload: dict[str, Any]) -> "pb.AddReply":
        return self._asked(self.stub.Add, iter(_messages(data, payload)))

    def remove(self, ids: Sequence[str]) -> "pb.RemoveReply":
        from pocketlens_wire.v1 import gallery_pb2 as pb

        return self._asked(self.stub.Remove, pb.RemoveRequest(ids=ids))

    def _asked(self, method: Any, request: Any) -> Any:
        import grpc
        from pocketlens_wire.errors import KIND_METADATA, GalleryError, Unavailable, error_from_status

        try:
            return method(request, timeout=self.timeout_s, metadata=self.metadata)
        except grpc.RpcError as error:
            call: Any = error
            if call.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(
                    "no server answers there: check --server, and --tls, --ca, --cert and --key as it wants them"
                ) from error
            if call.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise GalleryError("the server there does not take pictures: start it with --writable") from error
            kind = dict(call.trailing_metadata() or ()).get(KIND_METADATA)
            raise error_from_status(call.code(), call.details() or "", kind) from error


@contextmanager
def _stub(asking: Connection, timeout_s: float) -> Iterator[_Asker]:
    from pocketlens_wire.v1.gallery_pb2_grpc import GalleryStub

    with asking.opened() as (channel, metadata):
        yield _Asker(GalleryStub(channel), timeout_s, metadata)


def _messages(data: bytes, payload: dict[str, Any]) -> "Sequence[pb.AddRequest]":
    from pocketlens_wire.limits import MAX_CHUNK_BYTES
    from pocketlens_wire.v1 import gallery_pb2 as pb

    begin = pb.Begin(picture_bytes=len(data))
    for key, value in payload.items():
        kind = {bool: "flag", int: "integer", float: "number", str: "text"}[type(value)]
        setattr(begin.payload[key], kind, value)
    chunks = [data[at : at + MAX_CHUNK_BYTES] for at in range(0, len(data), MAX_CHUNK_BYTES)]
    return [pb.AddRequest(begin=begin), *(pb.AddRequest(chunk=chunk) for chunk in chunks)]


def _payload(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint="--payload") from error
    if not isinstance(values, dict) or any(type(value) not in (bool, int, float, str) for value in values.values()):
        raise typer.BadParameter("is an object of texts, numbers, true and false", param_hint="--payload")
    return values


def _check_ids(ids: Sequence[str]) -> None:
    """Raises BadQuery, before anything is removed."""
    from pocketlens_wire.errors import BadQuery

    from pocketlens_cloud.gallery.payload import clip

    for each in ids:
        if not _ID.fullmatch(each):
            raise BadQuery(
                f"{clip(each)} is no picture's id: those are 32 hex digits, and `pocketlens-edge search --json` and "
                "`pocketlens-cloud add` give them whole; nothing is removed"
            )


def _bytes(file: Path) -> bytes:
    from pocketlens_wire.errors import BadPicture
    from pocketlens_wire.limits import MAX_PICTURE_BYTES

    try:
        if (size := file.stat().st_size) > MAX_PICTURE_BYTES:
            raise BadPicture(f"{size} bytes; a server takes {MAX_PICTURE_BYTES}")
        return file.read_bytes()
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror}") from error
