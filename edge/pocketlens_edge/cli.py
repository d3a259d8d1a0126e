"""`pocketlens-edge`: search, encode, doctor.

Owns options, help texts and the one boundary where errors become a line and an exit code. Imports nothing
heavy before a command runs, so `--help` stays quick. The work is in encoder.py, client.py and doctor.py, the
looks in show.py and sheet.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from PIL import Image

    from pocketlens_edge.client import Answer

_DEFAULT_SERVER = "127.0.0.1:50551"
_SHEET_TYPES = (".png", ".jpg", ".jpeg", ".webp")

commands = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find pictures by a picture, by words, or by a picture changed by words.\n\n"
    "The picture stays on this device. A small encoder turns it into a few [b]sentence tokens[/b], less than "
    "a kilobyte; those, your words and your filters go to the server, which answers with pictures of its "
    "gallery. Tokens are not anonymous: they tell what a picture shows, though not pixel by pixel.",
    epilog="Start with [b]pocketlens-edge doctor[/b], which proves that this machine computes what it "
    "should. [b]pocketlens-edge search --help[/b] has examples.",
)

_SEARCH_HELP = (
    "Ask a server for pictures like PICTURE, changed as --text says.\n\n"
    "Give a picture (a photo or a sketch), words, or both. Beside a picture, words say what should be "
    "different; alone, they say what to find.\n\n"
    "[b]Examples[/b]\n\n"
    'pocketlens-edge search mug.jpg --text "make it red"\n'
    'pocketlens-edge search sketch.png --text "in a garden" --top 5\n'
    'pocketlens-edge search --text "striped hats" -f colour=blue -f count=2\n'
    "pocketlens-edge search mug.jpg --pictures gallery/ --sheet out.png\n\n"
    "[b]What leaves this device[/b]\n\n"
    "The picture's tokens (784 bytes for 4 of width 192 in int8), the words, the filters, and two ids that "
    "say which bundle made the tokens. Not the picture, its name or its place. Each answer counts the "
    "bytes.\n\n"
    "[b]Exit code[/b]\n\n"
    "0 answered, even with no hit; 1 something failed and stderr says what; 2 wrong usage."
)

Bundle = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Bundle to use. Default: $POCKETLENS_BUNDLE, else the sample bundle."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, also for errors.")]
Threads = Annotated[
    int, typer.Option(min=0, metavar="N", help="Threads of the encoder; 0 = one per core.", rich_help_panel="Runtime")
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Form of the encoder to run, such as int8; [b]doctor[/b] lists the bundle's. Default: the most exact.",
        rich_help_panel="Runtime",
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="ONNX Runtime execution provider, such as cuda or coreml. Default: the CPU.",
        rich_help_panel="Runtime",
    ),
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Deadline of the question, retries included.")]


@commands.command(help=_SEARCH_HELP)
def search(
    picture: Annotated[Path | None, typer.Argument(help="Picture to start from.", show_default=False)] = None,
    *,
    text: Annotated[str, typer.Option("--text", "-t", metavar="WORDS", help="What should be different.")] = "",
    server: Annotated[
        str, typer.Option("--server", "-s", metavar="HOST:PORT", help="Server to ask.")
    ] = _DEFAULT_SERVER,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Hits wanted.")] = 10,
    mode: Annotated[
        Literal["zero-shot", "tuned"] | None,
        typer.Option(help="How the server composes picture and words. Default: its choice.", show_default=False),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            "-f",
            metavar="KEY=VALUE",
            help="Only pictures with this value; repeatable. [b]2[/b] is a number, [b]true[/b] a flag, "
            "[b]red[/b] text, [b]'\"2\"'[/b] text too.",
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a contact sheet: .png, .jpg or .webp.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the same as one self-contained page.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", exists=True, file_okay=False, help="Folder that was indexed, to show the hits' pictures."
        ),
    ] = None,
    bundle: Bundle = None,
    encoding: Annotated[Literal["int8", "f16", "f32", "int4"], typer.Option(help="How the tokens travel.")] = "int8",
    timeout: Timeout = 5.0,
    as_json: Json = False,
    threads: Threads = 1,
    precision: Precision = None,
    provider: Provider = None,
) -> None:
    if picture is None and not text.strip():
        raise typer.BadParameter("give a PICTURE, or words with --text, or both")
    _check_writable(sheet, "--sheet", _SHEET_TYPES)
    _check_writable(page, "--html", (".html", ".htm"))

    from pocketlens_wire.bundle import default_bundle
    from pocketlens_wire.errors import BadQuery
    from pocketlens_wire.manifest import read_edge
    from pocketlens_wire.tokens import Encoding

    from pocketlens_edge.client import Client
    from pocketlens_edge.questions import Mode, parse_filter

    try:
        where = parse_filter(filters or [])
    except BadQuery as error:
        raise typer.BadParameter(str(error)) from None
    bundle = bundle or default_bundle()
    tokens, device_ms = None, dict[str, float]()
    if picture is None:
        manifest = read_edge(bundle)  # words alone need no encoder, only the token space
        encoder_id = ""
    else:
        from pocketlens_edge.encoder import Encoder

        encoder = Encoder.load(bundle, threads=threads, precision=precision, providers=[provider] if provider else None)
        encoded = encoder.encode_timed(picture)
        manifest, tokens, device_ms = encoder.manifest, encoded.tokens, encoded.times_ms
        encoder_id = encoder.encoder_id
    with Client(
        server,
        token_space=manifest.token_space,
        encoder_id=encoder_id,
        timeout_s=timeout,
        encoding=Encoding(encoding),
    ) as client:
        answer = client.search(tokens, text, top=top, mode=Mode(mode) if mode else None, where=where)
    if sheet or page:
        _write_pictures(answer, picture, text, pictures, sheet, page)
    _print_answer(answer, device_ms, as_json)
    if not as_json:
        for path in filter(None, (sheet, page)):
            typer.echo(f"wrote {path}")


@commands.command()
def encode(
    picture: Annotated[Path, typer.Argument(help="Picture to encode.", show_default=False)],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write tokens and ids to this .npz file.", show_default=False),
    ] = None,
    bundle: Bundle = None,
    as_json: Json = False,
    threads: Threads = 1,
    precision: Precision = None,
    provider: Provider = None,
) -> None:
    """Turn PICTURE into sentence tokens, here, and send nothing.

    The .npz holds [b]tokens[/b] float32 (count, width), [b]token_space[/b] and [b]encoder[/b].

    Example: pocketlens-edge encode mug.jpg -o mug.npz"""
    _check_writable(out, "--out", (".npz",))
    import numpy as np
    from pocketlens_wire.bundle import default_bundle
    from pocketlens_wire.tokens import Encoding, pack

    from pocketlens_edge.encoder import Encoder

    encoder = Encoder.load(
        bundle or default_bundle(), threads=threads, precision=precision, providers=[provider] if provider else None
    )
    encoded = encoder.encode_timed(picture)
    manifest, tokens = encoder.manifest, encoded.tokens
    if out:
        np.savez(out, tokens=tokens, token_space=np.array(manifest.token_space), encoder=np.array(encoder.encoder_id))
    facts: dict[str, Any] = {
        "count": tokens.shape[0],
        "width": tokens.shape[1],
        "token_space": manifest.token_space,
        "encoder": encoder.encoder_id,
        "precision": encoder.form,
        "provider": encoder.provider,
        "bytes": {encoding.value: pack(tokens, encoding).ByteSize() for encoding in Encoding},
        "times_ms": encoded.times_ms,
        "out": str(out) if out else None,
    }
    if as_json:
        _print_json(facts)
        return
    sizes = ", ".join(f"{name} {size:,}" for name, size in facts["bytes"].items())
    times = ", ".join(f"{stage} {ms:.1f}" for stage, ms in encoded.times_ms.items())
    typer.echo(
        f"{manifest.token_count} tokens of width {manifest.token_width} in {manifest.token_space}, "
        f"by {encoder.encoder_id} ({encoder.form})"
    )
    typer.echo(f"bytes: {sizes}\nms: {times} on {encoder.provider}")
    typer.echo(f"written to {out}" if out else "nothing was kept; -o FILE keeps them")


@commands.command()
def doctor(
    *,
    server: Annotated[
        str | None, typer.Option("--server", "-s", metavar="HOST:PORT", help="Also examine this server.")
    ] = None,
    bundle: Bundle = None,
    timeout: Timeout = 5.0,
    as_json: Json = False,
    threads: Threads = 1,
    precision: Precision = None,
    provider: Provider = None,
) -> None:
    """Prove that this machine computes what the bundle promises.

    Checks every file's hash, replays the golden pictures and measures each stage; with --server, also that
    the server speaks the same token space. Exit code 0 if all is well, 1 if not.

    Example: pocketlens-edge doctor --server 127.0.0.1:50551"""
    from pocketlens_wire.bundle import default_bundle

    from pocketlens_edge.doctor import examine

    checks = examine(
        bundle or default_bundle(),
        threads=threads,
        precision=precision,
        providers=[provider] if provider else None,
        server=server,
        timeout_s=timeout,
    )
    well = all(check.ok for check in checks)
    if as_json:
        found = {check.name: {"ok": check.ok, "said": check.said, **check.facts} for check in checks}
        _print_json({"ok": well, "checks": found})
    else:
        from pocketlens_edge.show import print_checks

        print_checks(_console(), checks)
    if not well:
        raise typer.Exit(1)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"pocketlens-edge {version('pocketlens')}")
        raise typer.Exit


@commands.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def app(arguments: list[str] | None = None) -> NoReturn:
    """The command's entry point: runs it and leaves with its exit code.

    Every expected error becomes one line on stderr (or one JSON object on stdout with --json) and exit code
    1, or 2 for wrong usage. What is not expected is a bug and keeps its traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(commands(arguments, prog_name="pocketlens-edge", standalone_mode=False) or 0)
    except typer.TyperException as error:
        _fail(
            "Usage",
            f"{error.format_message()} (pocketlens-edge {_command(arguments)}--help)",
            arguments,
            error.exit_code,
        )
    except OSError as error:
        _fail("System", f"{error.filename or 'system'}: {error.strerror or error}", arguments, 1)
    except Exception as error:
        from pocketlens_wire.errors import PocketlensError

        if not isinstance(error, PocketlensError):
            raise
        _fail(type(error).__name__, str(error), arguments, 1)


def _command(arguments: list[str]) -> str:
    return next((f"{name} " for name in ("search", "encode", "doctor") if name in arguments[:1]), "")


def _fail(kind: str, message: str, arguments: list[str], exit_code: int) -> NoReturn:
    line = "".join(char if char.isprintable() else " " for char in message)
    if "--json" in arguments:
        _print_json({"error": {"kind": kind, "message": line}})
    else:
        typer.echo(f"pocketlens-edge: {line}", err=True)
    sys.exit(exit_code)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, allow_nan=False))


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_answer(answer: Answer, device_ms: dict[str, float], as_json: bool) -> None:
    from pocketlens_edge.show import answer_json, print_answer

    if as_json:
        _print_json(answer_json(answer, device_ms))
    else:
        print_answer(_console(), answer, device_ms)


def _write_pictures(
    answer: Answer,
    picture: Path | None,
    words: str,
    pictures: Path | None,
    sheet: Path | None,
    page: Path | None,
) -> None:
    from pocketlens_wire.pictures import open_picture

    from pocketlens_edge.sheet import contact_sheet, html_page
    from pocketlens_edge.show import sheet_row

    anchor: Image.Image | None = open_picture(picture, near=320) if picture else None
    row = sheet_row(answer, anchor, words, pictures)
    if sheet:
        contact_sheet([row]).save(sheet)
    if page:
        html_page([row], page, columns=len(row.hits))


def _check_writable(path: Path | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse, before anything is asked, a file that could not be written afterwards."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise typer.BadParameter(f"{option} {path}: must end in {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{option} {path}: there is no folder {path.parent}")
