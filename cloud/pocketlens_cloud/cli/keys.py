"""`pocketlens-cloud keys`: make, list, revoke and check the keys of a service."""

import json
import math
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_cloud.cli.root import AsJson, app, err, fail, out, plain_errors

if TYPE_CHECKING:
    from pocketlens_cloud.serving.keys import Key

keys = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Make, list, revoke and check the keys of a service.

    The file holds hashes, never a key. `serve --keys FILE` reads it, and follows every change without a restart.""",
)
app.add_typer(keys, name="keys")

File = Annotated[Path, typer.Option("--keys", metavar="FILE", help="The file of keys.")]


@keys.command("new")
def new(
    file: File,
    scope: Annotated[
        list[str],
        typer.Option(
            metavar="search|index|admin",
            help="What it may: search: ask; index: change what is in the gallery; admin: run the service. Repeatable.",
        ),
    ],
    note: Annotated[str, typer.Option(help="For whom it is; anyone who may read the file sees it.")] = "",
    days: Annotated[
        float | None,
        typer.Option(min=0, max=36_500, help="How long it is good (default: for ever).", show_default=False),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="Rows a second that its questions may have read.", show_default=False)
    ] = None,
    burst: Annotated[
        int | None, typer.Option(min=1, help="Rows that they may have read at once.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it on stdout, this once: it is kept nowhere.

    [bold]Example[/bold]

    pocketlens-cloud keys new --keys keys.json --scope search --note "camera 3" --days 90 > camera-3.key
    """
    from pocketlens_cloud.serving import keys as kept

    with plain_errors():
        if days is not None and math.isnan(days):
            raise typer.BadParameter("is no number", param_hint="--days")
        valid_for = timedelta(days=days) if days is not None else None
        scopes: list[kept.Scope] = [each for each in kept.SCOPES if each in scope]
        if unknown := set(scope) - set(scopes):
            raise typer.BadParameter(f"{', '.join(unknown)}: use {', '.join(kept.SCOPES)}", param_hint="--scope")
        text, key = kept.new(file, scopes, note=note, valid_for=valid_for, rate=rate, burst=burst)
    if as_json:
        out.print_json(json.dumps({"key": text} | _told(key)))
    else:
        print(text)  # noqa: T201 - bare, so that it can be sent to a file
        err.print(f"key {key.id}: {_facts(key)}. It is not shown again.", markup=False, highlight=False)


@keys.command("list")
def list_keys(file: File, as_json: AsJson = False) -> None:
    """List the keys: ids, scopes, limits, dates and notes."""
    from pocketlens_cloud.serving.keys import parse

    with plain_errors():
        found = parse(file.read_bytes(), file)
        if as_json:
            out.print_json(json.dumps([_told(key) for key in found]))
            return
        for key in found:
            out.print(f"{key.id}  {_facts(key)}", markup=False, highlight=False)


@keys.command("revoke")
def revoke(key: Annotated[str, typer.Argument(metavar="ID", help="Its id, as `list` shows it.")], file: File) -> None:
    """Revoke a key. A server that runs refuses it from its next call on, also on open connections."""
    from pocketlens_cloud.serving import keys as kept

    with plain_errors():
        revoked = kept.revoke(file, key)
    out.print(f"{revoked.id}  {_facts(revoked)}", markup=False, highlight=False)


@keys.command("check")
def check(
    file: File,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Where the key is (default: $POCKETLENS_API_KEY).", show_default=False),
    ] = None,
) -> None:
    """Say whether a server with this file would take a key, and for what. Exit code 1: it would not."""
    from pocketlens_wire.api_key import read_api_key
    from pocketlens_wire.errors import Unauthenticated

    from pocketlens_cloud.serving.keys import Keys

    with plain_errors():
        came = read_api_key(api_key_file)
        if came is None:
            fail("no key came: name its file with --api-key-file, or set POCKETLENS_API_KEY")
        try:
            key = Keys(file).recognise([came.metadata()[0][1]])
        except Unauthenticated as error:
            err.print(str(error), markup=False, highlight=False)
            raise typer.Exit(1) from None
    out.print(f"{key.id}  {_facts(key)}", markup=False, highlight=False)


def _facts(key: "Key") -> str:
    limits = [f"{key.rate:g} rows/s" if key.rate else "", f"burst {key.burst}" if key.burst else ""]
    ends = f"revoked {key.revoked}" if key.revoked else f"expires {key.expires}" if key.expires else "does not expire"
    return ", ".join(each for each in (" ".join(key.scopes), *limits, ends, key.note) if each)


def _told(key: "Key") -> dict[str, object]:
    """All that is kept of a key but its hash."""
    from dataclasses import asdict

    return {name: value for name, value in asdict(key).items() if name != "hash"}
