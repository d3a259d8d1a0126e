"""`pocketlens-edge batch`: options, help, the progress bar, and the summary."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlens_edge.cli.root import (
    DEFAULT_SERVER,
    KEPT,
    ApiKeyFile,
    Authority,
    Bundle,
    Certificate,
    CertificateKey,
    EncodingName,
    Engines,
    Filters,
    Json,
    ModeName,
    OutboxFolder,
    Precision,
    Provider,
    Server,
    Text,
    Threads,
    Timeout,
    Top,
    UseTls,
    commands,
    console,
    key_of,
    load_encoder,
    parse_filters,
    print_json,
    tls_of,
)

if TYPE_CHECKING:
    from pocketlens_edge.batch import Answering, Summary
    from pocketlens_edge.client import Client
    from pocketlens_edge.conditions import Filter
    from pocketlens_edge.encoder import Encoded
    from pocketlens_edge.outbox import Outbox
    from pocketlens_edge.patience import Pause
    from pocketlens_edge.questions import Mode

_NAMED = 10  # failed pictures named on the terminal; the file names all


@commands.command()
def batch(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures.", show_default=False)],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write one JSON line a picture to this .jsonl.", show_default=False
        ),
    ],
    text: Text = "",
    server: Server = DEFAULT_SERVER,
    top: Top = 10,
    mode: ModeName = None,
    filters: Filters = None,
    encode_only: Annotated[
        bool, typer.Option("--encode-only", help="Ask nobody; goes with --tokens.", show_default=False)
    ] = False,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also keep each picture's tokens, as DIR/NAME.npz.", show_default=False),
    ] = None,
    outbox: OutboxFolder = None,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long, for one picture, to ask a busy server again when it says; 0: never.",
        ),
    ] = 30.0,
    bundle: Bundle = None,
    encoding: EncodingName = "int8",
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
    """Ask the same question of every picture below FOLDER.

    Each picture gets one line: its [b]file[/b], and hits, mode, notes, bytes
    and times as search --json gives them; or its [b]error[/b]. Order is by name;
    linked folders are not entered.

    Stop it whenever you like and run it again: pictures with a line are not
    asked again, unless they changed or had an error. Another question needs
    another file.

    [b]Examples[/b]

    pocketlens-edge batch holiday/ --text "in the snow" -o answers.jsonl

    pocketlens-edge batch holiday/ --encode-only --tokens tokens/ -o tokens.jsonl

    [b]Exit code[/b]

    0 every picture has its line; 1 some could not be used, or it was stopped;
    2 wrong usage; 3 some questions were kept in the outbox."""
    if encode_only and not tokens:
        raise typer.BadParameter("--encode-only needs --tokens DIR to put them in")
    if encode_only and (text or filters or outbox):
        raise typer.BadParameter("--encode-only asks nothing: leave out --text, --where and --outbox")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"--out {out}: there is no folder {out.parent}")

    from pocketlens_wire.tokens import Encoding

    from pocketlens_edge.batch import look_through, run
    from pocketlens_edge.client import Client
    from pocketlens_edge.conditions import as_mapping
    from pocketlens_edge.journal import Journal
    from pocketlens_edge.questions import Mode

    tls, api_key = tls_of(use_tls, ca, certificate, key), key_of(api_key_file)
    where = parse_filters(filters)
    box = _outbox(outbox)
    found = look_through(folder)
    encoder = load_encoder(bundle, threads=threads, precision=precision, provider=provider, engines=engines)
    away: list[str] = []
    asked: dict[str, Any] = {"token_space": encoder.manifest.token_space, "encoder": encoder.encoder_id}
    asked["tokens"] = str(tokens.absolute()) if tokens else None  # lines say that they were kept there
    if not encode_only:
        plain = as_mapping(where)
        asked |= {"words": text, "top": top, "mode": mode, "encoding": encoding}
        asked["where"] = sorted(filters or []) if plain is None else plain
    with (
        Journal(out, asked=asked, pictures=found.pictures) as journal,
        Client(server, encoder, timeout_s=timeout, encoding=Encoding(encoding), tls=tls, api_key=api_key) as client,
        _progress(len(found.pictures)) as on_progress,
    ):
        answering = _answering(
            client, text, top=top, mode=Mode(mode) if mode else None, where=where, patience_s=patience, outbox=box,
            away=away,
        )  # fmt: skip
        summary = run(
            folder, found, journal, encoder, answering=None if encode_only else answering, keep_tokens=tokens,
            on_progress=on_progress,
        )  # fmt: skip
    _tell(summary, out, outbox, away, server=server, as_json=as_json)
    if summary.failed:
        raise typer.Exit(1)
    if summary.kept:
        raise typer.Exit(KEPT)


def _outbox(folder: Path | None) -> Outbox | None:
    if folder is None:
        return None
    from pocketlens_edge.outbox import Outbox

    return Outbox(folder)


def _answering(
    client: Client,
    words: str,
    *,
    top: int,
    mode: Mode | None,
    where: Filter,
    patience_s: float,
    outbox: Outbox | None,
    away: list[str],
) -> Answering:
    """Asks the server, a busy one again as long as patience lasts; with an outbox, keeps the question once no server
    answers, and all that follow. `away` is told why."""
    from pocketlens_edge.outbox import AWAY
    from pocketlens_edge.patience import ask_patiently
    from pocketlens_edge.show import answer_json

    def answer(file: str, encoded: Encoded, pause: Pause) -> dict[str, Any]:
        question = client.question(encoded.tokens, words, top=top, mode=mode, where=where)
        if not away or not outbox:
            try:
                found = ask_patiently(partial(client.ask, question), patience_s, pause=pause)
                return answer_json(found, encoded.times_ms)
            except AWAY as error:
                if not outbox:
                    raise
                away.append(str(error))
        return {"kept": outbox.keep(question, picture=file)}

    return answer


@contextmanager
def _progress(total: int) -> Generator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console(stderr=True)
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("pictures", total=total)
        yield lambda done: bar.update(task, completed=done)


def _tell(summary: Summary, out: Path, outbox: Path | None, away: list[str], *, server: str, as_json: bool) -> None:
    from pocketlens_edge.show import printable

    if as_json:
        failed = [{"file": printable(file), "why": why} for file, why in summary.failed]
        print_json({**asdict(summary), "failed": failed, "out": str(out), "reason": away[0] if away else ""})
        return
    counts = {
        "answered": summary.answered,
        "encoded": summary.encoded,
        "already there": summary.there,
        f"kept in {outbox}": summary.kept,
        "failed": len(summary.failed),
    }
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    typer.echo(f"{summary.pictures:,} pictures: {said or 'nothing to do'}; {out}")
    if away:
        later = f"`pocketlens-edge outbox send {outbox} -s {server}` asks later"
        typer.echo(printable(f"kept: {away[0]} {later}"), err=True)
    for file, why in summary.failed[:_NAMED]:
        typer.echo(printable(f"failed: {why if why.startswith(file) else f'{file}: {why}'}"), err=True)
    if len(summary.failed) > _NAMED:
        typer.echo(f"failed: {len(summary.failed) - _NAMED} more, see the lines with an error in {out}", err=True)
