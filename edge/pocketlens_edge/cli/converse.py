"""`pocketlens-edge converse`: options and help; what a line means is prompt.py's, how a turn looks show.py's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_edge.cli.root import (
    DEFAULT_SERVER,
    SHEET_TYPES,
    ApiKeyFile,
    Authority,
    Bundle,
    Certificate,
    CertificateKey,
    EncodingName,
    Engines,
    Filters,
    LocalGallery,
    ModeName,
    Pictures,
    Precision,
    Provider,
    Server,
    Sheet,
    Texts,
    Threads,
    Timeout,
    Top,
    UseTls,
    check_writable,
    commands,
    console,
    key_of,
    load_encoder,
    parse_filters,
    picture_source,
    print_json,
    tls_of,
)

if TYPE_CHECKING:
    from pocketlens_wire.errors import PocketlensError

    from pocketlens_edge.converse import Conversation, Turn

_HELP = (
    "Find a picture turn by turn: like PICTURE, then refined by what you say.\n\n"
    "The picture's tokens travel once. Each line that you type refines the question and is answered; [b]/not[/b] leads "
    "away from something, [b]/back[/b] undoes, [b]/where[/b] filters, [b]/help[/b] tells the rest. An empty line at "
    "the beginning asks for pictures like this one.\n\n"
    "[b]Examples[/b]\n\n"
    "pocketlens-edge converse mug.jpg\n"
    "printf 'in blue\\n/not striped\\n/back\\n' | pocketlens-edge converse mug.jpg --json\n"
    "pocketlens-edge converse mug.jpg --pictures gallery/ --sheet turns.png\n\n"
    "[b]Exit code[/b]\n\n"
    "0 all went well; 1 something failed and stderr says what, among lines piped in also a turn that was refused; 2 "
    "wrong usage."
)


@commands.command(help=_HELP)
def converse(
    picture: Annotated[Path | None, typer.Argument(help="Picture to start from.", show_default=False)] = None,
    *,
    text: Texts = None,
    server: Server = DEFAULT_SERVER,
    local_gallery: LocalGallery = None,
    top: Top = 10,
    mode: ModeName = None,
    filters: Filters = None,
    sheet: Sheet = None,
    pictures: Pictures = None,
    bundle: Bundle = None,
    encoding: EncodingName = "int8",
    timeout: Timeout = 5.0,
    use_tls: UseTls = False,
    ca: Authority = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    api_key_file: ApiKeyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a turn, also for errors.")] = False,
    threads: Threads = 1,
    precision: Precision = None,
    provider: Provider = None,
    engines: Engines = None,
) -> None:
    if picture is None and not text:
        raise typer.BadParameter("give a PICTURE, or words with --text, or both")
    if picture == Path("-"):
        raise typer.BadParameter("standard input is for what you say; name a picture file")
    tls = tls_of(use_tls, ca, certificate, key)
    if local_gallery and (tls or api_key_file or server != DEFAULT_SERVER):
        raise typer.BadParameter("--local-gallery asks no server; leave out --server and what goes with it")
    check_writable(sheet, "--sheet", SHEET_TYPES)

    from pocketlens_wire.bundle import default_bundle
    from pocketlens_wire.manifest import read_edge
    from pocketlens_wire.tokens import Encoding

    from pocketlens_edge.client import Client
    from pocketlens_edge.local import open_gallery
    from pocketlens_edge.questions import Mode

    where = parse_filters(filters)
    bundle = bundle or default_bundle()
    tokens, encoder_id = None, ""
    if picture is None:
        token_space = read_edge(bundle).token_space
    else:
        source, name = picture_source(picture, None, "rgb24")
        encoder = load_encoder(bundle, threads=threads, precision=precision, provider=provider, engines=engines)
        tokens = encoder.encode_timed(source, name=name).tokens
        token_space, encoder_id = encoder.manifest.token_space, encoder.encoder_id
    with ExitStack() as open_things:
        asked = open_things.enter_context(open_gallery(local_gallery, bundle)) if local_gallery else server
        client = Client(
            asked,
            token_space=token_space,
            encoder_id=encoder_id,
            timeout_s=timeout,
            encoding=Encoding(encoding),
            tls=tls,
            api_key=None if local_gallery else key_of(api_key_file),
        )
        open_things.enter_context(client)
        words, *further = text or [""]
        opening = client.question(
            tokens, words, modifiers=further, top=top, mode=Mode(mode) if mode else None, where=where
        )
        talk = open_things.enter_context(client.converse(opening))
        turns, refused = _talk(talk, begin=bool(text), as_json=as_json)
    if sheet:
        _write_sheet(turns, picture, pictures, sheet)
        if not as_json:
            typer.echo(f"wrote {sheet}")
    if refused and not sys.stdin.isatty():
        raise typer.Exit(1)


def _talk(talk: Conversation, *, begin: bool, as_json: bool) -> tuple[list[Turn], int]:
    """The turns that were answered, and how many were not. begin: with the opening as it is, before any line."""
    from pocketlens_wire.errors import PocketlensError

    from pocketlens_edge.prompt import Over, Told, obey

    turns: list[Turn] = []
    refused = 0
    for line in chain([""] if begin else [], _lines()):
        try:
            turns.append(obey(talk, line, turns[-1] if turns else None))
        except Over:
            break
        except Told as told:
            typer.echo(str(told), err=True)
        except PocketlensError as error:
            if talk.over:
                raise
            refused += 1
            _tell_error(error, as_json=as_json)
        else:
            _tell(turns[-1], as_json=as_json)
    return turns, refused


def _lines() -> Iterator[str]:
    """What is typed or piped in, to its end."""
    if not sys.stdin.isatty():
        for line in sys.stdin:  # noqa: UP028, `yield from` would close standard input at /quit
            yield line
        return
    with suppress(ImportError):  # not on every system; input() then lets lines be edited and recalled
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]

    typer.echo("Say what should be different; an empty line: like the picture; /help, /quit", err=True)
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _tell(turn: Turn, *, as_json: bool) -> None:
    from pocketlens_edge.show import print_turn, turn_json

    if as_json:
        print_json(turn_json(turn))
    else:
        print_turn(console(), turn)


def _tell_error(error: PocketlensError, *, as_json: bool) -> None:
    from pocketlens_edge.show import printable

    if as_json:
        print_json({"error": {"kind": type(error).__name__, "message": printable(str(error))}})
    else:
        typer.echo(f"pocketlens-edge: {printable(str(error))}", err=True)


def _write_sheet(turns: list[Turn], picture: Path | None, pictures: Path | None, sheet: Path) -> None:
    from pocketlens_wire.pictures import open_picture

    from pocketlens_edge.sheet import contact_sheet
    from pocketlens_edge.show import sheet_row, summary

    anchor = open_picture(picture, near=320) if picture else None
    rows = [sheet_row(turn.answer, anchor, summary(turn.in_force), pictures) for turn in turns]
    contact_sheet(rows).save(sheet)
