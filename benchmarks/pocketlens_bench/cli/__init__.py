"""`pocketlens-bench`: one file per command or family of commands.

Owns the one boundary where errors become a line and an exit code."""

import sys
from typing import NoReturn

import typer
from pocketlens_wire.errors import PocketlensError

from pocketlens_bench.cli import (
    ablation,
    accuracy,
    chaos,
    distil_pace,
    hostile,
    indexing,
    latency,
    load,
    network,
    paper,
    plan,
    refine,
    report,
    robustness,
    scale,
    score,
    serving,
    start,
    tokens,
    workers,
    zoo,
)
from pocketlens_bench.cli.root import commands
from pocketlens_bench.command_line import remember_command

__all__ = [
    "ablation", "accuracy", "app", "chaos", "distil_pace", "hostile", "indexing", "latency", "load", "network", "paper",
    "plan", "refine", "report", "robustness", "scale", "score", "serving", "start", "tokens", "workers", "zoo",
]  # fmt: skip


def app(arguments: list[str] | None = None) -> NoReturn:
    """The command's entry point: runs it and leaves with its exit code.

    0 measured, 1 it went wrong and stderr says why, 2 wrong usage."""
    remember_command(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(commands(arguments, prog_name="pocketlens-bench", standalone_mode=False) or 0)
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except PocketlensError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", 130)


def _fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(f"pocketlens-bench: {message}", err=True)
    sys.exit(exit_code)
