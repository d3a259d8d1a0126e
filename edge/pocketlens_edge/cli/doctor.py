"""`pocketlens-edge doctor`: options and help."""

from __future__ import annotations

from typing import Annotated

import typer

from pocketlens_edge.cli.root import (
    ApiKeyFile,
    Authority,
    Bundle,
    Certificate,
    CertificateKey,
    Engines,
    Json,
    Precision,
    Provider,
    Threads,
    Timeout,
    UseTls,
    commands,
    console,
    key_of,
    print_json,
    tls_of,
)  # fmt: skip


@commands.command()
def doctor(
    *,
    server: Annotated[
        str | None, typer.Option("--server", "-s", metavar="HOST:PORT", help="Also examine this server.")
    ] = None,
    bundle: Bundle = None,
    timeout: Timeout = 5.0,
    use_tls: UseTls = False,
    ca: Authority = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    api_key_file: ApiKeyFile = None,
    as_json: Json = False,
    threads: Threads = 1,
    precision: Precision = None,
    provider: Provider = None,
    engines: Engines = None,
) -> None:
    """Prove that this machine computes what the bundle promises.

    Checks every file's hash, replays the golden pictures in every form of the
    encoder (with --precision in that one alone), measures each stage and the
    memory. With --server also: the ids of both sides, the round trip, the
    server's clock, its limits, and how the connection is encrypted.

    [b]Examples[/b]

    pocketlens-edge doctor --server 127.0.0.1:50551

    pocketlens-edge doctor --precision int8 --json

    [b]Exit code[/b]

    0 all is well, warnings or not; 1 something is not."""
    tls, api_key = tls_of(use_tls, ca, certificate, key), key_of(api_key_file)

    from pocketlens_wire.bundle import default_bundle

    from pocketlens_edge.doctor import examine

    checks = examine(
        bundle or default_bundle(),
        threads=threads,
        precision=precision,
        providers=[provider] if provider else None,
        engines=engines,
        server=server,
        timeout_s=timeout,
        tls=tls,
        api_key=api_key,
    )
    well = all(check.ok for check in checks)
    if as_json:
        found = {
            check.name: {"ok": check.ok, "warn": check.warn, "said": check.said, **check.facts} for check in checks
        }
        print_json({"ok": well, "checks": found})
    else:
        from pocketlens_edge.show import print_checks

        print_checks(console(), checks)
    if not well:
        raise typer.Exit(1)
