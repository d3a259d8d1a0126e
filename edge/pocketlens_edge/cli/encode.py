"""`pocketlens-edge encode`: options, help, and what is said of the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pocketlens_edge.cli.root import (
    Bundle,
    Engines,
    Json,
    Precision,
    Provider,
    Raw,
    RawFormat,
    Threads,
    check_writable,
    commands,
    load_encoder,
    picture_source,
    print_json,
)  # fmt: skip


@commands.command()
def encode(
    picture: Annotated[
        Path, typer.Argument(help="Picture to encode; - takes it from standard input.", show_default=False)
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write tokens and ids to this .npz file.", show_default=False),
    ] = None,
    raw: Raw = None,
    raw_format: RawFormat = "rgb24",
    bundle: Bundle = None,
    as_json: Json = False,
    threads: Threads = 1,
    precision: Precision = None,
    provider: Provider = None,
    engines: Engines = None,
) -> None:
    """Turn PICTURE into sentence tokens, here, and send nothing.

    The .npz holds [b]tokens[/b] float32 (count, width), [b]token_space[/b] and [b]encoder[/b].

    Examples:

    pocketlens-edge encode mug.jpg -o mug.npz

    pocketlens-edge encode - --raw 640x480 -o frame.npz < frame.rgb"""
    check_writable(out, "--out", (".npz",))
    from pocketlens_wire.tokens import Encoding, pack

    source, name = picture_source(picture, raw, raw_format)
    encoder = load_encoder(bundle, threads=threads, precision=precision, provider=provider, engines=engines)
    encoded = encoder.encode_timed(source, name=name)
    manifest, tokens = encoder.manifest, encoded.tokens
    if out:
        encoder.save(tokens, out)
    facts: dict[str, Any] = {
        "count": tokens.shape[0],
        "width": tokens.shape[1],
        "token_space": manifest.token_space,
        "encoder": encoder.encoder_id,
        "precision": encoder.form,
        "provider": encoder.provider,
        "notes": encoder.notes,
        "bytes": {encoding.value: pack(tokens, encoding).ByteSize() for encoding in Encoding},
        "times_ms": encoded.times_ms,
        "out": str(out) if out else None,
    }
    if as_json:
        print_json(facts)
        return
    sizes = ", ".join(f"{name} {size:,}" for name, size in facts["bytes"].items())
    times = ", ".join(f"{stage} {ms:.1f}" for stage, ms in encoded.times_ms.items())
    typer.echo(
        f"{manifest.token_count} tokens of width {manifest.token_width} in {manifest.token_space}, "
        f"by {encoder.encoder_id} ({encoder.form})"
    )
    typer.echo(f"bytes: {sizes}\nms: {times} on {encoder.provider}")
    typer.echo(f"written to {out}" if out else "nothing was kept; -o FILE keeps them")
