"""`pocketlens-cloud describe`: ask a running server about itself."""

import json
from pathlib import Path
from typing import Annotated

import typer
from pocketlens_wire.errors import Unavailable, error_from_status

from pocketlens_cloud.cli.root import AsJson, app, out, plain_errors


@app.command()
def describe(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="A running server.")] = "127.0.0.1:50551",
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 5.0,
    ca: Annotated[
        Path | None, typer.Option(help="Ask over TLS; the authorities to trust, PEM.", show_default=False)
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Where the key is, if it asks for one (default: $POCKETLENS_API_KEY).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running server what it speaks and allows.

    [bold]Example[/bold]

    pocketlens-cloud describe --server 127.0.0.1:50551 --json
    """
    with plain_errors():
        facts = _ask_describe(server, timeout_s, ca, api_key_file)
        if as_json:
            out.print_json(json.dumps(facts))
            return
        for name, value in facts.items():
            if name == "unix_ms":  # for programs, which set it against their own clock
                continue
            said = ", ".join(map(_said, value)) if isinstance(value, list) else _said(value)
            out.print(f"{name:>22}  {said}", markup=False, highlight=False)


def _said(value: object) -> str:
    """A fact as the options say it: MODE_ZERO_SHOT is zero-shot there."""
    text = str(value)
    return text.removeprefix("MODE_").replace("_", "-").lower() if text.startswith("MODE_") else text


def _ask_describe(server: str, timeout_s: float, ca: Path | None, api_key_file: Path | None) -> dict[str, object]:
    import grpc
    from pocketlens_wire.api_key import demand_privacy, read_api_key
    from pocketlens_wire.v1 import retrieval_pb2 as pb
    from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

    key = read_api_key(api_key_file)
    if key:
        demand_privacy(server, encrypted=ca is not None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes()) if ca else None
    with grpc.secure_channel(server, credentials) if credentials else grpc.insecure_channel(server) as channel:
        try:
            reply = RetrievalStub(channel).Describe(
                pb.DescribeRequest(), timeout=timeout_s, metadata=key.metadata() if key else ()
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(
                    f"no server answers at {server}: start one with `pocketlens-cloud serve`, or check the address "
                    "(and --ca, which a server that speaks TLS needs, and no other)"
                ) from error
            raise error_from_status(error.code(), error.details() or "") from error
    facts: dict[str, object] = {}
    for key in pb.DescribeReply.DESCRIPTOR.fields:
        value = getattr(reply, key.name)
        facts[key.name] = list(value) if key.is_repeated else value
    facts["modes"] = [pb.Mode.Name(mode) for mode in reply.modes]
    facts["default_mode"] = pb.Mode.Name(reply.default_mode)
    return facts
