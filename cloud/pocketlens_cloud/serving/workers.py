"""Several worker processes behind one port: the supervisor that starts and watches them, and the line to each.

A worker is the ordinary server. It shares the port with the others (SO_REUSEPORT): the kernel gives each new connection
to one of those that listen, and none to one that has ended. Owns the reservation of ports, when a worker is started
again and when that is given up, and what is told of all of them together. The supervisor answers no question, loads no
model, and may be killed: its workers notice and leave."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Final, final

from pocketlens_wire.errors import ServerFault

from pocketlens_cloud.serving import metrics
from pocketlens_cloud.serving.calls import GRACE_S

if TYPE_CHECKING:
    from pocketlens_cloud.serving.health import Health

WAIT_S: Final = 0.5  # before a worker that ended is started again; doubled each time it ends soon
MAX_WAIT_S: Final = 30.0
SOON_S: Final = 60.0  # a worker that lived longer begins with the shortest wait again
TRIES: Final = 5  # starts that fail in a row, while no worker serves, before the whole is given up
ANSWER_S: Final = 1.0  # for a worker's report; one that takes longer stands still
KILL_S: Final = 5.0  # beyond draining and grace, for a worker that was told to go

log = logging.getLogger(__name__)

Work = Callable[[int, Connection], None]  # the worker's number from 1, and its end of the line


# --- ports


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Hold `port` of `host` for processes of this user that share it; 0 lets the system choose. Gives the port.

    Bound alone, so that whoever is there already is found out, then opened to those who share; nothing comes in here,
    since it does not listen. Raises ServerFault if the port cannot be had."""
    if sys.platform != "linux":
        raise ServerFault("only Linux shares a port's connections out among processes: start one worker")
    held: list[socket.socket] = []
    try:
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, place in places:
                held.append(_reserved(family, (place[0], port)))
                port = held[-1].getsockname()[1]
        except OSError as error:
            why = error.strerror or error
            raise ServerFault(f"cannot listen on {host}, port {port}: is another program there? ({why})") from error
        yield port
    finally:
        for each in held:
            each.close()


def _reserved(family: int, place: tuple[Any, int]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, place[0] != "::")
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended a moment ago do not count
        bound.bind(place)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nor does a server that shares with nobody get in
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        bound.close()
        raise
    return bound


# --- the worker's end of the line


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker says of itself when it is asked. why: it is not ready; stuck: it stands still; "" if not so."""

    why: str
    stuck: str
    figures: Sequence[Any] = ()  # of metrics.py


@final
class Line:
    """Tells the supervisor that this worker is ready, and what it asks."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, Lock()

    def ready(self, facts: str) -> None:
        """It listens; facts: what it serves, for a person."""
        self._send(facts)

    def answer(self, health: "Health") -> None:
        """Answer from now on, from a thread of its own, so also when the event loop stands still."""
        Thread(target=self._answer, args=(health,), name="line", daemon=True).start()

    def _answer(self, health: "Health") -> None:
        with suppress(OSError):
            while self._is_asked():
                self._send(Report(why=health.why, stuck=health.stuck, figures=metrics.collected()))
        os.kill(os.getpid(), signal.SIGTERM)  # the supervisor is gone: leave as if it had said so

    def _is_asked(self) -> bool:
        try:
            self._connection.recv()
        except EOFError:
            return False
        return True

    def _send(self, told: object) -> None:
        with self._lock:
            self._connection.send(told)


# --- the supervisor's


@final
class _Worker:
    """One worker process, started."""

    def __init__(self, number: int, work: Work) -> None:
        context = get_context("spawn")  # a copy of this process would share its threads' locks
        self._line, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(number, theirs), name=f"worker-{number}", daemon=True)
        self.process.start()
        theirs.close()
        self.number, self.facts = number, ""
        self._lock, self._owes = Lock(), False

    @property
    def serves(self) -> bool:
        return bool(self.facts)

    async def listened(self) -> bool:
        """Wait until it listens, or has ended without."""
        await _readable(self._line.fileno())
        with suppress(EOFError, OSError):
            self.facts = self._line.recv()
        return self.serves

    async def ended(self) -> str:
        """Wait until it has ended; gives how."""
        await _readable(self.process.sentinel)
        self.process.join()
        self.facts = ""
        with self._lock:
            self._line.close()
        code = self.process.exitcode or 0
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    def tell(self, number: int) -> None:
        """Send a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    def report(self) -> Report | None:
        """What it says of itself; None if it does not serve. Called from any thread."""
        with self._lock, suppress(EOFError, OSError):
            if not self.serves:
                return None
            if not self._owes:
                self._line.send(None)
                self._owes = True
            if not self._line.poll(ANSWER_S):
                silent = f"it has not answered for {ANSWER_S:g} s"
                return Report(why=silent, stuck=silent)
            self._owes = False
            return self._line.recv()
        return None


@final
class Supervisor:
    """Keeps `count` workers. `why`, `stuck` and `figures` may be asked from any thread."""

    def __init__(self, work: Work, count: int, *, on_ready: Callable[[str], None], drain_s: float) -> None:
        """work: what a worker process does, by a name that it can import; on_ready: called with what the first one said
        of itself when all listen for the first time; drain_s: what a worker that was told to go takes at most, besides
        the server's own grace."""
        self._work, self._count, self._on_ready, self._drain_s = work, count, on_ready, drain_s
        self._workers: dict[int, _Worker] = {}
        self._failed = 0  # starts in a row
        self._was_whole = False
        self._serving, self._leaving = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Keep them until SIGTERM or SIGINT, which they are told too, and all have ended.

        Raises ServerFault when one ends at the first start, or all at every start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._tell, number)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(1, self._count + 1):
                    group.create_task(self._keep(number))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._end()

    # --- what is told of all

    @property
    def why(self) -> str:
        """Why the whole is not ready: nobody serves, or one that does is not ready."""
        if self._leaving.is_set():
            return "the server is leaving"
        reports = self._reports()
        said = [f"worker {number}: {each.why}" for number, each in reports.items() if each.why]
        return said[0] if said else "" if reports else "no worker serves"

    @property
    def stuck(self) -> str:
        """Which one stands still."""
        return next((f"worker {number}: {each.stuck}" for number, each in self._reports().items() if each.stuck), "")

    def figures(self) -> bytes:
        """All workers' figures, each series with its worker's number."""
        return metrics.joined({number: each.figures for number, each in self._reports().items()})

    def _reports(self) -> dict[int, Report]:
        asked = sorted(self._workers.copy().items())
        return {number: report for number, worker in asked if (report := worker.report())}

    # --- a worker's life after life

    async def _keep(self, number: int) -> None:
        if number > 1:  # what keeps a server from starting is said once, by the first
            await self._either(self._serving.wait())
        wait_s, loop = WAIT_S, asyncio.get_running_loop()
        while not self._leaving.is_set():
            began = loop.time()
            worker = self._workers[number] = _Worker(number, self._work)
            has_served = await worker.listened()
            if has_served:
                self._note_serving()
            how = await worker.ended()
            if self._leaving.is_set():
                return
            if not has_served:
                self._give_up_if_hopeless(number, how)
            wait_s = WAIT_S if loop.time() - began > SOON_S else min(2 * wait_s, MAX_WAIT_S)
            log.error("worker %d (pid %s) ended %s; started again in %g s", number, worker.process.pid, how, wait_s)
            await self._either(asyncio.sleep(wait_s))

    def _note_serving(self) -> None:
        self._failed = 0
        self._serving.set()
        serving = [each for each in self._workers.values() if each.serves]
        if not self._was_whole and len(serving) == self._count:
            self._was_whole = True
            self._on_ready(serving[0].facts)

    def _give_up_if_hopeless(self, number: int, how: str) -> None:
        self._failed += 1
        if not self._was_whole:
            raise ServerFault(f"worker {number} ended {how} before it was ready; why stands above")
        if self._failed >= TRIES and not any(each.serves for each in self._workers.values()):
            raise ServerFault(f"no worker serves, and {TRIES} starts in a row have failed, the last one {how}")

    async def _either(self, what: Any) -> None:
        """Wait for `what`, or until told to leave."""
        tasks = {asyncio.ensure_future(what), asyncio.ensure_future(self._leaving.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    # --- the end

    def _tell(self, number: int) -> None:
        if not self._leaving.is_set():
            self._leaving.set()
            asyncio.get_running_loop().call_later(self._drain_s + GRACE_S + KILL_S, self._kill)
        for worker in self._alive():
            worker.tell(number)

    def _kill(self) -> None:
        for worker in self._alive():
            log.error("worker %d (pid %s) does not end: it is killed", worker.number, worker.process.pid)
            worker.tell(signal.SIGKILL)

    async def _end(self) -> None:
        """Nobody is left, however this ended."""
        for worker in self._alive():
            worker.tell(signal.SIGTERM)
        asyncio.get_running_loop().call_later(self._drain_s + GRACE_S + KILL_S, self._kill)
        for worker in self._alive():
            await worker.ended()

    def _alive(self) -> list[_Worker]:
        return [each for each in self._workers.values() if each.process.exitcode is None]


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read, or an end."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(descriptor)
