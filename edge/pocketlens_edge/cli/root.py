"""What every command of `pocketlens-edge` shares: the command object, options, and telling the result.

Imports nothing heavy before a command runs, so `--help` stays quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketlens_wire.api_key import ApiKey
    from rich.console import Console

    from pocketlens_edge.conditions import Filter
    from pocketlens_edge.connection import Tls
    from pocketlens_edge.encoder import Encoder

DEFAULT_SERVER = "127.0.0.1:50551"
SHEET_TYPES = (".png", ".jpg", ".jpeg", ".webp")
KEPT = 3  # exit code: no answer, but the question is kept

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
        help="ONNX Runtime execution provider, such as cuda, tensorrt or coreml; [b]engine[/b] is a TensorRT engine "
        "built here; [b]auto[/b] the first that runs of engine, tensorrt, cuda and the CPU. Default: the CPU.",
        rich_help_panel="Runtime",
    ),
]
Engines = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where TensorRT engines lie. Default: $POCKETLENS_ENGINES, else ~/.cache/pocketlens/engines.",
        rich_help_panel="Runtime",
    ),
]
Server = Annotated[
    str, typer.Option("--server", "-s", metavar="HOST:PORT", help="Server to ask; replicas as IP:PORT,IP:PORT.")
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Deadline of the question, retries included.")]
Text = Annotated[str, typer.Option("--text", "-t", metavar="WORDS", help="What should be different.")]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        "-t",
        metavar="WORDS",
        help="What should be different; repeatable.",
        show_default=False,
    ),
]
Sheet = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a contact sheet: .png, .jpg or .webp.")]
Pictures = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", exists=True, file_okay=False, help="Folder that was indexed, to show the hits' pictures."
    ),
]
LocalGallery = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Search this gallery on the device itself, offline, instead of asking a server. Needs both halves of "
        "the bundle and pocketlens\\[cloud].",
        show_default=False,
    ),
]
Top = Annotated[int, typer.Option(min=1, metavar="N", help="Hits wanted.")]
ModeName = Annotated[
    Literal["zero-shot", "tuned"] | None,
    typer.Option(help="How the server composes picture and words. Default: its choice.", show_default=False),
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "--filter",
        "-f",
        metavar="CONDITION",
        help="Only pictures of which this holds; repeatable. [b]colour=red[/b], [b]kind=shoe|boot[/b], "
        "[b]tag!=sale[/b], [b]price<50[/b] (also <=, >, >=), [b]price=10..50[/b], [b]title~red mug[/b] (has the "
        "words), [b]place@48.2,16.4,5000[/b] (metres around), [b]!discount[/b] (there is none). [b]2[/b] is a number, "
        "[b]true[/b] a flag, [b]red[/b] text, [b]'\"2\"'[/b] text too.",
    ),
]
OutboxFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="When no server answers, keep the question here (tokens and words, no picture) for `outbox send`.",
        show_default=False,
    ),
]
Raw = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHxHEIGHT",
        help="With `-`: one raw frame of this size comes instead of a picture file.",
        show_default=False,
    ),
]
RawFormat = Annotated[
    Literal["rgb24", "bgr24", "gray"], typer.Option(help="Its pixels, 8 bit, rows from the top without padding.")
]
EncodingName = Annotated[Literal["int8", "f16", "f32", "int4"], typer.Option(help="How the tokens travel.")]
UseTls = Annotated[
    bool,
    typer.Option("--tls", help="Encrypt the connection; the three below imply it.", rich_help_panel="Encryption"),
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        help="Authorities to trust, PEM. Default: the public ones.",
        rich_help_panel="Encryption",
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--cert", metavar="FILE", help="This device's certificate, PEM, if the server wants one.",
        rich_help_panel="Encryption",
    ),
]  # fmt: skip
CertificateKey = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="The key of that certificate, PEM.", rich_help_panel="Encryption"),
]

ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with this device's key, if the server asks for one. Default: $POCKETLENS_API_KEY.",
        show_default=False,
        rich_help_panel="Encryption",
    ),
]


FollowTrace = Annotated[
    bool,
    typer.Option(
        "--trace",
        envvar="POCKETLENS_TRACE",
        help="Let the question be followed through the service, and print its trace's id.",
    ),
]


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


def load_encoder(
    bundle: Path | None, *, threads: int, precision: str | None, provider: str | None, engines: Path | None
) -> Encoder:
    """The encoder that the options mean. What a user should know of how it runs goes to stderr."""
    from pocketlens_wire.bundle import default_bundle

    from pocketlens_edge.encoder import Encoder

    encoder = Encoder.load(
        bundle or default_bundle(),
        threads=threads,
        precision=precision,
        providers=[provider] if provider else None,
        engines=engines,
    )
    for note in encoder.notes:
        typer.echo(f"note: {note}", err=True)
    return encoder


def tls_of(use: bool, ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """What the four options of encryption mean. Raises wrong usage."""
    if not (use or ca or certificate or key):
        return None
    if (certificate is None) != (key is None):
        raise typer.BadParameter("--cert and --key belong together; give both or neither")

    from pocketlens_edge.connection import Tls

    return Tls(ca=ca, certificate=certificate, key=key)


def trace_of(follow: bool) -> Callable[[], str] | None:
    """What gives each question its trace and tells its id on stderr; None where none is to be followed."""
    from pocketlens_edge.traces import trace_id, traceparent

    def told() -> str:
        parent = traceparent()
        typer.echo(f"trace {trace_id(parent)}", err=True)
        return parent

    return told if follow else None


def key_of(file: Path | None) -> ApiKey | None:
    """This device's key, if it has one. Raises BadQuery for what is none."""
    from pocketlens_wire.api_key import read_api_key

    return read_api_key(file)


def picture_source(picture: Path, raw: str | None, raw_format: str) -> tuple[Path | bytes, str | None]:
    """What PICTURE means: its path, or for `-` the bytes on standard input and what to call them.

    Raises wrong usage, and BadPicture for what comes on standard input."""
    from pocketlens_wire.errors import BadPicture, BadQuery

    if picture != Path("-"):
        if raw:
            raise typer.BadParameter("--raw says what comes on standard input; give - as PICTURE")
        if picture.is_dir():
            raise BadPicture(f"{picture}: is a folder; pocketlens-edge batch takes all pictures of one.")
        return picture, None

    from pocketlens_edge.stdin import NAME, parse_frame, read_picture

    try:
        frame = parse_frame(raw, raw_format) if raw else None
    except BadQuery as error:
        raise typer.BadParameter(str(error)) from None
    return read_picture(frame), NAME


def parse_filters(filters: list[str] | None) -> Filter:
    """What --where said. Raises wrong usage."""
    from pocketlens_wire.errors import BadQuery

    from pocketlens_edge.conditions import parse_filter

    try:
        return parse_filter(filters or [])
    except BadQuery as error:
        raise typer.BadParameter(str(error)) from None


def print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, allow_nan=False))


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def check_writable(path: Path | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse, before anything is asked, a file that could not be written afterwards."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise typer.BadParameter(f"{option} {path}: must end in {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{option} {path}: there is no folder {path.parent}")
