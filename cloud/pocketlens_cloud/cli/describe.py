"""`pocketlens-cloud describe`: ask a running server about itself."""

import json
from typing import Annotated

import typer
from pocketlens_wire.errors import Unavailable, error_from_status

from pocketlens_cloud.cli.root import AsJson, app, out, plain_errors


@app.command()
def describe(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="A running server.")] = "127.0.0.1:50551",
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Ask a running server what it speaks and allows.

    [bold]Example[/bold]

    pocketlens-cloud describe --server 127.0.0.1:50551 --json
    """
    with plain_errors():
        facts = _ask_describe(server, timeout_s)
        if as_json:
            out.print_json(json.dumps(facts))
            return
        for name, value in facts.items():
            said = ", ".join(map(str, value)) if isinstance(value, list) else value
            out.print(f"{name:>18}  {said}", markup=False, highlight=False)


def _ask_describe(server: str, timeout_s: float) -> dict[str, object]:
    import grpc
    from pocketlens_wire.v1 import retrieval_pb2 as pb
    from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

    with grpc.insecure_channel(server) as channel:
        try:
            reply = RetrievalStub(channel).Describe(pb.DescribeRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(
                    f"no server answers at {server}: start one with `pocketlens-cloud serve`, or check the address"
                ) from error
            raise error_from_status(error.code(), error.details() or "") from error
    facts: dict[str, object] = {}
    for key in pb.DescribeReply.DESCRIPTOR.fields:
        value = getattr(reply, key.name)
        facts[key.name] = list(value) if key.is_repeated else value
    facts["modes"] = [pb.Mode.Name(mode) for mode in reply.modes]
    facts["default_mode"] = pb.Mode.Name(reply.default_mode)
    return facts
