"""`pocketlens-cloud serve --workers N`: what the supervisor says and holds, and what a worker process runs.

How workers are kept is serving/workers.py's."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_cloud.cli.operating import say_figures, start_log
from pocketlens_cloud.cli.root import plain_errors
from pocketlens_cloud.cli.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from pocketlens_cloud.cli.security import Security
    from pocketlens_cloud.serving.workers import Supervisor

Workers = Annotated[
    int,
    typer.Option(
        min=1,
        help="Processes behind the one port, each with its own text tower: memory times N. Needs --qdrant, and Linux.",
        rich_help_panel="Operations",
    ),
]


def check_workers(asked: Settings) -> None:
    """Refuse what several processes cannot have together."""
    if asked.workers == 1:
        return
    if asked.qdrant is None:
        raise typer.BadParameter(
            f"one process at a time may hold the gallery in {asked.gallery}: put it on a Qdrant server, which several "
            "ask (--qdrant and --collection), or start one worker",
            param_hint="--workers",
        )
    if asked.writable:
        raise typer.BadParameter("pictures are written by one process: start one worker", param_hint="--writable")


def supervise(
    asked: Settings, security: "Security", page: tuple[str, int] | None, monitor: tuple[str, int] | None
) -> None:
    """Keep the workers until told to stop. page, monitor: host and port of HTTP for browsers and for machines.

    Raises ServerFault if a port cannot be had or workers do not start."""
    import asyncio
    import logging

    from pocketlens_cloud.cli.serve import announced, say_page
    from pocketlens_cloud.serving.workers import Supervisor, reserved

    with ExitStack() as held:
        port = held.enter_context(reserved(asked.host, asked.port))
        web = held.enter_context(reserved(*page)) if page else None
        on_ready = held.enter_context(announced(asked))
        theirs = replace(asked, port=port, web=_at(asked.web, web), metrics=None, ready_file=None)

        def tell(facts: str) -> None:
            if web:
                say_page(asked, security, web)
            on_ready(port, f"{facts}, {asked.workers} workers")

        async def keep() -> None:
            supervisor = Supervisor(partial(work, theirs), asked.workers, on_ready=tell, drain_s=asked.drain_s)
            with _telling(asked, supervisor, monitor):
                await supervisor.run()

        log = logging.getLogger(__name__)
        log.info("%d workers, each with a text tower of its own in memory", asked.workers)
        asyncio.run(keep())


def _at(named: str | None, port: int | None) -> str | None:
    """HOST:PORT with the port that was got for it."""
    return f"{named.rpartition(':')[0]}:{port}" if named else None


@contextmanager
def _telling(asked: Settings, supervisor: "Supervisor", monitor: tuple[str, int] | None) -> Iterator[None]:
    """The HTTP port for machines, of all workers together."""
    from pocketlens_cloud.serving import monitoring

    if monitor is None:
        yield
        return
    host, port = monitor
    with monitoring.listening(supervisor, host=host, port=port, figures=supervisor.figures) as bound:
        say_figures(asked, bound)
        yield


def work(asked: Settings, number: int, connection: "Connection") -> None:
    """One worker process, from its start to its end."""
    from pocketlens_cloud.cli.serve import serve_as_worker
    from pocketlens_cloud.serving.workers import Line

    try:
        with plain_errors():
            start_log(asked, number)
            serve_as_worker(asked, Line(connection))
    except typer.Exit as end:
        sys.exit(end.exit_code)
