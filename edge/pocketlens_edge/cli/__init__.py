"""`pocketlens-edge`: one file per command.

Owns the one boundary where errors become a line and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from pocketlens_edge.cli import batch, converse, doctor, encode, outbox, search
from pocketlens_edge.cli.root import commands, print_json

__all__ = ["app", "batch", "converse", "doctor", "encode", "outbox", "search"]

_STOPPED = 130  # what typer makes of Ctrl-C


def app(arguments: list[str] | None = None) -> NoReturn:
    """The command's entry point: runs it and leaves with its exit code.

    Every expected error becomes one line on stderr (or one JSON object on stdout with --json) and exit code
    1, or 2 for wrong usage. What is not expected is a bug and keeps its traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        exit_code = commands(arguments, prog_name="pocketlens-edge", standalone_mode=False) or 0
        if exit_code == _STOPPED:
            _fail("Stopped", "stopped", arguments, _STOPPED)
        sys.exit(exit_code)
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
    named = [command.name or command.callback.__name__ for command in commands.registered_commands if command.callback]
    groups = [group.name for group in commands.registered_groups]
    return next((f"{name} " for name in (*named, *groups) if name in arguments[:1]), "")


def _fail(kind: str, message: str, arguments: list[str], exit_code: int) -> NoReturn:
    line = "".join(char if char.isprintable() else " " for char in message)
    if "--json" in arguments:
        print_json({"error": {"kind": kind, "message": line}})
    else:
        typer.echo(f"pocketlens-edge: {line}", err=True)
    sys.exit(exit_code)
