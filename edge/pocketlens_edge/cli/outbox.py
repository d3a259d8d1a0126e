"""`pocketlens-edge outbox`: what waits, sending it, dropping it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlens_edge.cli.root import (
    DEFAULT_SERVER,
    KEPT,
    ApiKeyFile,
    Authority,
    Certificate,
    CertificateKey,
    Json,
    Server,
    Timeout,
    UseTls,
    commands,
    console,
    key_of,
    print_json,
    tls_of,
)  # fmt: skip

if TYPE_CHECKING:
    from pocketlens_edge.outbox import Outbox, Question, Sent

outbox = typer.Typer(
    help="Questions kept while no server answered: look, send, drop.\n\n"
    "`search --outbox DIR` and `batch --outbox DIR` keep a question in DIR when they get no answer: its tokens, "
    "words and filters, never the picture. `outbox send DIR` asks them later, oldest first; each answer is a file "
    "DIR/answers/ID.json."
)
commands.add_typer(outbox, name="outbox")

_Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The outbox.", exists=True, file_okay=False, show_default=False)
]


@outbox.command(name="list")
def list_(folder: _Folder, *, as_json: Json = False) -> None:
    """Show what waits, oldest first, and how many answers lie ready."""
    from pocketlens_edge.outbox import Damaged
    from pocketlens_edge.show import print_outbox

    box = _opened(folder)
    entries, set_aside, answered = box.look(), box.set_aside(), box.answered()
    damaged = [{"id": entry.id, "reason": entry.reason} for entry in entries if isinstance(entry, Damaged)]
    damaged += [{"id": id_, "reason": "set aside"} for id_ in set_aside]
    waiting = [entry for entry in entries if not isinstance(entry, Damaged)]
    if as_json:
        print_json({"waiting": [_plain(entry) for entry in waiting], "damaged": damaged, "answered": answered})
        return
    print_outbox(console(), waiting, now=datetime.now(UTC))
    for entry in damaged:
        typer.echo(f"damaged: {entry['id']}: {entry['reason']}")
    typer.echo(f"{len(waiting):,} waiting, {len(damaged):,} damaged, {len(answered):,} answered in {box.answers}")


@outbox.command()
def send(
    folder: _Folder,
    *,
    server: Server = DEFAULT_SERVER,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long to go on asking while no server answers; a busy one is asked when it says.",
        ),
    ] = 10.0,
    max_age: Annotated[
        float, typer.Option(min=0, max=36_500, metavar="DAYS", help="Leave older questions where they are.")
    ] = 30.0,
    timeout: Timeout = 5.0,
    use_tls: UseTls = False,
    ca: Authority = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    api_key_file: ApiKeyFile = None,
    as_json: Json = False,
) -> None:
    """Ask what waits, oldest first.

    An answer is on the disk, in DIR/answers, before its question goes. Kill it
    whenever you like: nothing is lost and no question gets two answers. What
    the server refuses stays, is reported, and holds up no other.

    Example: pocketlens-edge outbox send outbox/ --server 10.0.0.5:50551

    [b]Exit code[/b]

    0 nothing waits any more; 1 some were refused, damaged or too old; 2 wrong
    usage; 3 no server answered and some still wait."""
    from pocketlens_edge.client import Client
    from pocketlens_edge.show import answer_json

    tls, api_key = tls_of(use_tls, ca, certificate, key), key_of(api_key_file)
    box = _opened(folder)
    with Client(server, token_space="each question's own", timeout_s=timeout, tls=tls, api_key=api_key) as client:
        sent = box.send(
            lambda request: answer_json(client.ask(request), {}),
            patience_s=patience,
            max_age=timedelta(days=max_age),
        )
    if as_json:
        print_json(_sent_json(sent, box.answers))
    else:
        _tell(sent, box.answers)
    if sent.refused or sent.damaged or sent.too_old:
        raise typer.Exit(1)
    if sent.waiting:
        raise typer.Exit(KEPT)


@outbox.command()
def drop(
    folder: _Folder,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", show_default=False)] = None,
    *,
    answered: Annotated[
        bool, typer.Option("--answered", help="All answers, once you have taken what you need.", show_default=False)
    ] = False,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="All questions that wait, and damaged ones.", show_default=False)
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove questions, damaged files or answers, by id or all of a kind.

    Example: pocketlens-edge outbox drop outbox/ --answered"""
    if not (ids or answered or waiting):
        raise typer.BadParameter("name ids, or give --answered or --waiting")

    box = _opened(folder)
    gone = list(ids or [])
    if answered:
        gone += box.answered()
    if waiting:
        gone += [entry.id for entry in box.look()] + box.set_aside()
    box.drop(gone)
    if as_json:
        print_json({"dropped": gone})
    else:
        typer.echo(f"{len(gone):,} dropped")


def _opened(folder: Path) -> Outbox:
    """The outbox that is there. Raises BadQuery rather than make one of another folder."""
    from pocketlens_wire.errors import BadQuery

    from pocketlens_edge.outbox import Outbox

    if not (folder / "answers").is_dir():
        raise BadQuery(f"{folder}: is not an outbox; `search --outbox` and `batch --outbox` make one.")
    return Outbox(folder)


def _plain(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "created": question.created.isoformat(),
        "picture": question.picture,
        "words": question.request.words,
        "token_space": question.request.token_space,
        "encoder": question.request.encoder,
    }


def _sent_json(sent: Sent, answers: Path) -> dict[str, Any]:
    return {
        "answered": [{**_plain(entry), "answer": str(answers / f"{entry.id}.json")} for entry in sent.answered],
        "refused": [
            {**_plain(entry), "kind": type(error).__name__, "message": str(error)} for entry, error in sent.refused
        ],
        "too_old": [_plain(entry) for entry in sent.too_old],
        "damaged": [{"id": entry.id, "reason": entry.reason} for entry in sent.damaged],
        "waiting": [_plain(entry) for entry in sent.waiting],
        "reason": sent.reason,
    }


def _tell(sent: Sent, answers: Path) -> None:
    from pocketlens_edge.show import printable

    for entry in sent.answered:
        typer.echo(printable(f"answered: {entry.id} {entry.picture or ''} {entry.request.words}"))
    for entry, error in sent.refused:
        typer.echo(printable(f"refused: {entry.id} {entry.picture or ''}: {error}"), err=True)
    for entry in sent.too_old:
        typer.echo(f"too old: {entry.id}; --max-age takes it, `outbox drop` removes it", err=True)
    for entry in sent.damaged:
        typer.echo(f"damaged: {entry.id}: {entry.reason}; set aside", err=True)
    if sent.waiting:
        typer.echo(printable(f"waiting: {len(sent.waiting):,}: {sent.reason}"), err=True)
    typer.echo(f"{len(sent.answered):,} answered, in {answers}")
