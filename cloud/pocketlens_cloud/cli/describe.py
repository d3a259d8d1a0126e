"""`pocketlens-cloud describe`: ask a running server about itself."""

import json
from typing import Annotated

import typer
from pocketlens_wire.errors import Unavailable, error_from_status

from pocketlens_cloud.cli.connecting import Ca, Certificate, CertificateKey, Connection, KeyFile, UseTls
from pocketlens_cloud.cli.root import AsJson, app, out, plain_errors


@app.command()
def describe(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="A running server.")] = "127.0.0.1:50551",
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 5.0,
    as_json: AsJson = False,
    tls: UseTls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    api_key_file: KeyFile = None,
) -> None:
    """Ask a running server what it speaks and allows.

    [bold]Example[/bold]

    pocketlens-cloud describe --server 127.0.0.1:50551 --json
    """
    with plain_errors():
        asking = Connection(server=server, tls=tls, ca=ca, certificate=certificate, key=key, api_key_file=api_key_file)
        facts = _ask_describe(asking, timeout_s)
        if as_json:
            out.print_json(json.dumps(facts))
            return
        for name, value in facts.items():
            if name == "unix_ms":  # for programs, which set it against their own clock
                continue
            said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            if name in {"modes", "default_mode"}:
                said = said.replace("MODE_", "").replace("_", "-").lower()  # as the options name them
            out.print(f"{name:>22}  {said}", markup=False, highlight=False)


def _ask_describe(asking: Connection, timeout_s: float) -> dict[str, object]:
    import grpc
    from pocketlens_wire.v1 import retrieval_pb2 as pb
    from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

    with asking.opened() as (channel, metadata):
        try:
            reply = RetrievalStub(channel).Describe(pb.DescribeRequest(), timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(
                    f"no server answers at {asking.server}: start one with `pocketlens-cloud serve`, or check the "
                    "address (and --tls or --ca, which a server that speaks TLS needs, and no other; and --cert and "
                    "--key, where it asks for a certificate)"
                ) from error
            raise error_from_status(error.code(), error.details() or "") from error
    facts: dict[str, object] = {}
    for key in pb.DescribeReply.DESCRIPTOR.fields:
        value = getattr(reply, key.name)
        facts[key.name] = list(value) if key.is_repeated else value
    facts["modes"] = [pb.Mode.Name(mode) for mode in reply.modes]
    facts["default_mode"] = pb.Mode.Name(reply.default_mode)
    return facts
