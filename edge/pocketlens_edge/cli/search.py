"""`pocketlens-edge search`: options and help; the work is in encoder.py and client.py, the looks in show.py."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_edge.cli.root import (
    DEFAULT_SERVER,
    KEPT,
    SHEET_TYPES,
    ApiKeyFile,
    Authority,
    Bundle,
    Certificate,
    CertificateKey,
    EncodingName,
    Engines,
    Filters,
    FollowTrace,
    Json,
    LocalGallery,
    ModeName,
    OutboxFolder,
    Pictures,
    Precision,
    Provider,
    Raw,
    RawFormat,
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
    trace_of,
)

if TYPE_CHECKING:
    from PIL import Image
    from pocketlens_wire.v1.retrieval_pb2 import SearchRequest

    from pocketlens_edge.client import Answer, Client

_SEARCH_HELP = (
    "Ask a server for pictures like PICTURE, changed as --text says.\n\n"
    "Give a picture (a photo or a sketch), words, or both. Beside a picture, words say what should be "
    "different; alone, they say what to find.\n\n"
    "[b]Examples[/b]\n\n"
    'pocketlens-edge search mug.jpg --text "make it red"\n'
    'pocketlens-edge search sketch.png --text "in a garden" --top 5\n'
    'pocketlens-edge search --text "striped hats" -f colour=blue -f count=2\n'
    'pocketlens-edge search mug.jpg --text "in blue" --not "on grass" --where "price<50" --page 2\n'
    "pocketlens-edge search mug.jpg --pictures gallery/ --sheet out.png\n"
    "pocketlens-edge search mug.jpg --local-gallery gallery/\n\n"
    "[b]From a camera[/b]\n\n"
    'rpicam-jpeg -n -o - | pocketlens-edge search - --text "make it red"\n'
    "ffmpeg -loglevel error -f v4l2 -video_size 640x480 -i /dev/video0 -frames:v 1 -f rawvideo -pix_fmt rgb24 - "
    "| pocketlens-edge search - --raw 640x480\n\n"
    "[b]What leaves this device[/b]\n\n"
    "The picture's tokens (784 bytes for 4 of width 192 in int8), the words, the filters, and two ids that "
    "say which bundle made the tokens. Not the picture, its name or its place. Each answer counts the "
    "bytes. With --local-gallery nothing leaves it.\n\n"
    "[b]Exit code[/b]\n\n"
    "0 answered, even with no hit; 1 something failed and stderr says what; 2 wrong usage; 3 no server answered and "
    "the question is kept in the outbox."
)


@commands.command(help=_SEARCH_HELP)
def search(
    picture: Annotated[
        Path | None,
        typer.Argument(help="Picture to start from; - takes it from standard input.", show_default=False),
    ] = None,
    *,
    text: Texts = None,
    unwanted: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="WORDS", help="What it should not be; repeatable.", show_default=False),
    ] = None,
    server: Server = DEFAULT_SERVER,
    local_gallery: LocalGallery = None,
    top: Top = 10,
    page_number: Annotated[
        int, typer.Option("--page", min=1, metavar="N", help="Which so many hits, as --top says: 2 is the second page.")
    ] = 1,
    mode: ModeName = None,
    filters: Filters = None,
    least_score: Annotated[
        float | None,
        typer.Option(min=-1, max=1, metavar="COSINE", help="Below it nothing is a hit.", show_default=False),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="One hit, the best, for each value of this payload key; --top counts values.",
            show_default=False,
        ),
    ] = None,
    group_size: Annotated[int, typer.Option(min=1, metavar="N", help="So many hits for each, with --group-by.")] = 1,
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="KEY,KEY", help="Payload to give back, shown as columns. Default: all.", show_default=False
        ),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Sort the best hits anew by what they have in common, if the server can.")
    ] = False,
    sheet: Sheet = None,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the same as one self-contained page.")
    ] = None,
    pictures: Pictures = None,
    raw: Raw = None,
    raw_format: RawFormat = "rgb24",
    outbox: OutboxFolder = None,
    bundle: Bundle = None,
    encoding: EncodingName = "int8",
    timeout: Timeout = 5.0,
    use_tls: UseTls = False,
    ca: Authority = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    api_key_file: ApiKeyFile = None,
    trace: FollowTrace = False,
    as_json: Json = False,
    threads: Threads = 1,
    precision: Precision = None,
    provider: Provider = None,
    engines: Engines = None,
) -> None:
    words = ", ".join(text or [])
    if picture is None and not words.strip():
        raise typer.BadParameter("give a PICTURE, or words with --text, or both")
    if picture is None and raw:
        raise typer.BadParameter("--raw says what comes on standard input; give - as PICTURE")
    if group_size > 1 and not group_by:
        raise typer.BadParameter("--group-size counts hits of each value of a key; name the key with --group-by")
    tls = tls_of(use_tls, ca, certificate, key)
    if local_gallery and (tls or api_key_file or outbox or server != DEFAULT_SERVER):
        raise typer.BadParameter("--local-gallery asks no server; leave out --server and what goes with it")
    check_writable(sheet, "--sheet", SHEET_TYPES)
    check_writable(page, "--html", (".html", ".htm"))

    from pocketlens_wire.bundle import default_bundle
    from pocketlens_wire.limits import MAX_REACH, MAX_TOP
    from pocketlens_wire.manifest import read_edge
    from pocketlens_wire.tokens import Encoding

    from pocketlens_edge.client import Client
    from pocketlens_edge.local import open_gallery
    from pocketlens_edge.questions import Mode, Modifier
    from pocketlens_edge.questions import unwanted as away_from

    if top <= MAX_TOP and page_number * top > MAX_REACH:
        raise typer.BadParameter(
            f"--page {page_number} with --top {top} ends at hit {page_number * top:,}; a server gives the first "
            f"{MAX_REACH:,}, so --page is at most {MAX_REACH // top}"
        )
    where = parse_filters(filters)
    first, *further = text or [""]
    modifiers: list[Modifier | str] = [*further, *map(away_from, unwanted or [])]
    wanted = None if keys is None else [each.strip() for each in keys.split(",") if each.strip()]
    bundle = bundle or default_bundle()
    source, name, tokens, device_ms, made_by = None, None, None, dict[str, float](), None
    if picture is None:
        manifest = read_edge(bundle)  # words alone need no encoder, only the token space
        encoder_id = ""
    else:
        source, name = picture_source(picture, raw, raw_format)
        encoder = load_encoder(bundle, threads=threads, precision=precision, provider=provider, engines=engines)
        encoded = encoder.encode_timed(source, name=name)
        manifest, tokens, device_ms = encoder.manifest, encoded.tokens, encoded.times_ms
        encoder_id, name = encoder.encoder_id, name or str(picture)
        made_by = {"id": encoder_id, "precision": encoder.form, "provider": encoder.provider}
    with ExitStack() as open_things:
        asked = open_things.enter_context(open_gallery(local_gallery, bundle)) if local_gallery else server
        api_key = None if local_gallery else key_of(api_key_file)
        client = Client(
            asked,
            token_space=manifest.token_space,
            encoder_id=encoder_id,
            timeout_s=timeout,
            encoding=Encoding(encoding),
            tls=tls,
            api_key=api_key,
            trace=trace_of(trace),
        )
        open_things.enter_context(client)
        request = client.question(
            tokens,
            first,
            top=top,
            mode=Mode(mode) if mode else None,
            where=where,
            modifiers=modifiers,
            least_score=least_score,
            skip=(page_number - 1) * top,
            group_by=group_by,
            group_size=group_size,
            payload=wanted if wanted is None or not (sheet or page) else ["file", *wanted],
            rerank=rerank,
        )
        answer = _ask_or_keep(client, request, outbox, name, as_json=as_json)
    if sheet or page:
        said = ", ".join([*(text or []), *(f"not {each}" for each in unwanted or [])])
        _write_pictures(answer, source, said, pictures, sheet, page)
    _print_answer(answer, device_ms, made_by, as_json=as_json, keys=wanted or [], first=request.skip + 1)
    if not as_json:
        for path in filter(None, (sheet, page)):
            typer.echo(f"wrote {path}")


def _ask_or_keep(
    client: Client, request: SearchRequest, folder: Path | None, picture: str | None, *, as_json: bool
) -> Answer:
    """The answer. Where there is an outbox and no server answers, the question is kept and the command leaves."""
    if folder is None:
        return client.ask(request)
    from pocketlens_edge.outbox import AWAY, Outbox

    outbox = Outbox(folder)  # before asking: one that cannot be used is better known now
    try:
        return client.ask(request)
    except AWAY as error:
        kept, reason = outbox.keep(request, picture=picture), str(error)
    if as_json:
        print_json({"kept": {"id": kept, "outbox": str(folder), "reason": reason}})
    else:
        typer.echo(f"pocketlens-edge: {reason}", err=True)
        typer.echo(f"kept as {kept}; `pocketlens-edge outbox send {folder} -s {client.server}` asks it later", err=True)
    raise typer.Exit(KEPT)


def _print_answer(
    answer: Answer,
    device_ms: dict[str, float],
    made_by: dict[str, str] | None,
    *,
    as_json: bool,
    keys: list[str],
    first: int,
) -> None:
    """made_by: the encoder of the picture's tokens; None for words alone. first: rank of the first hit."""
    from pocketlens_edge.show import answer_json, print_answer

    if as_json:
        print_json({**answer_json(answer, device_ms, first=first), "encoder": made_by})
    else:
        print_answer(console(), answer, device_ms, made_by, keys=keys, first=first)


def _write_pictures(
    answer: Answer,
    source: Path | bytes | None,
    words: str,
    pictures: Path | None,
    sheet: Path | None,
    page: Path | None,
) -> None:
    from pocketlens_wire.pictures import open_picture

    from pocketlens_edge.sheet import contact_sheet, html_page
    from pocketlens_edge.show import sheet_row

    anchor: Image.Image | None = open_picture(source, near=320) if source else None
    row = sheet_row(answer, anchor, words, pictures)
    if sheet:
        contact_sheet([row]).save(sheet)
    if page:
        html_page([row], page, columns=len(row.hits))
