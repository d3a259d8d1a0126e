"""Health that is earned: green only after a question of known answer came back right.

The canary (canary.py) goes the way of every question: queue, text tower, heads, gallery. So a gallery that does not
answer, a tower that raises or computes something else, and a queue that stands still all show. Where the gallery is
written to, that service's health is earned by writing too. Owns when it is asked and what is said; reached over gRPC
(grpc.health.v1) and, through monitoring.py, over HTTP. The only file that imports grpc_health."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, Final, final

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
from pocketlens_wire.errors import GalleryError, Overloaded, ServerFault, TooLate
from pocketlens_wire.v1 import gallery_pb2
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.serving import metrics
from pocketlens_cloud.serving.canary import Canary

log = logging.getLogger(__name__)

SERVICES: Final = ("", pb.DESCRIPTOR.services_by_name["Retrieval"].full_name)
WRITING: Final = gallery_pb2.DESCRIPTOR.services_by_name["Gallery"].full_name
EVERY_S: Final = 1.0  # between canaries, so that red comes within two seconds also where nobody asks
GAP_S: Final = 0.25  # between canaries at least, and while health is red
CANARY_S: Final = 1.0  # a canary later than this has found the server busy, or dead; more where a question takes longer
FIRST_S: Final = 30.0  # the first one warms up whatever is cold
MOST_S: Final = 10.0  # that a later one is waited for, whatever a question takes; below STILL_S
STUCK_S: Final = 5.0  # busy, but nothing answered for so long: dead
STILL_S: Final = 15.0  # the event loop has not turned for so long: the process is beyond help

_Status = health_pb2.HealthCheckResponse.ServingStatus
Ask = Callable[[pb.SearchRequest, float], Awaitable[pb.SearchReply]]  # with time.monotonic() of its deadline


@final
class Health:
    """What this server says of itself. Lives in one event loop; `ready`, `stuck` and `why` may be read anywhere."""

    def __init__(self, canary: Canary, *, every_s: float = EVERY_S, on_pass: Callable[[], None] = lambda: None) -> None:
        """on_pass: called after each canary that passed, in a thread; may block, and fail as the canary itself."""
        self._canary, self._every_s, self._on_pass = canary, every_s, on_pass
        self._leaving = False
        self._why = "no canary has been asked yet"
        self._doubt, self._gone = asyncio.Event(), asyncio.Event()
        self._patience_s = FIRST_S
        self._turned = self._answered = time.monotonic()
        self._hand = ThreadPoolExecutor(1, "canary")  # one, so that a gallery that hangs does not take many
        self._servicer = grpc_health.HealthServicer()
        self._said: bool | None = None
        self._probe: Callable[[], None] | None = None
        self._cannot_write = "nothing can be written to this server"

    # --- what others read and tell

    @property
    def why(self) -> str:
        """Why it is not ready; empty if it is."""
        return self._why

    @property
    def ready(self) -> bool:
        return not self._why

    @property
    def stuck(self) -> str:
        """Why it is beyond help; empty if it is not."""
        still = time.monotonic() - self._turned >= STILL_S
        return f"the event loop has not turned for {STILL_S:g} s" if still else ""

    def note_answer(self) -> None:
        """A question was answered: whoever is slow is not dead."""
        self._answered = time.monotonic()

    def doubt(self) -> None:
        """Something failed: ask a canary at once."""
        self._doubt.set()

    @property
    def services(self) -> tuple[str, ...]:
        """Whose health may become green here."""
        return (*SERVICES, WRITING) if self._probe else SERVICES

    def watch_writing(self, probe: Callable[[], None]) -> None:
        """Answer for the service that writes too. Before `watching`.

        probe: called now and then in a thread of its own; raises if nothing can be written. May wait for a write that
        is under way: until it is back that service's health stays what it was."""
        self._probe, self._cannot_write = probe, "no write has been tried yet"

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(_UntilGone(self._servicer, self._gone), server)

    # --- its life

    @asynccontextmanager
    async def watching(self, ask: Ask) -> AsyncIterator[None]:
        """Canaries as long as this is held; the first has come back when it is entered."""
        await self._tell()
        await self._try(ask)
        tasks = [asyncio.create_task(self._keep_trying(ask))]
        with ExitStack() as hands:
            hands.callback(self._hand.shutdown, wait=False, cancel_futures=True)
            if self._probe:
                hand = ThreadPoolExecutor(1, "probe")
                hands.callback(hand.shutdown, wait=False, cancel_futures=True)
                await self._try_writing(hand, self._probe)
                tasks.append(asyncio.create_task(self._keep_writing(hand, self._probe)))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def leave(self, drain: Awaitable[object]) -> None:
        """Say first that this server goes, then let `drain` end, then let those who watch go."""
        self._leaving = True
        await self._say("the server is leaving")
        await drain
        self._gone.set()

    async def _keep_trying(self, ask: Ask) -> None:
        while True:
            await asyncio.sleep(GAP_S)  # however much there is to doubt
            if self.ready:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._doubt.wait(), self._every_s - GAP_S)
            self._doubt.clear()
            self._turned = time.monotonic()
            await self._try(ask)

    async def _keep_writing(self, hand: ThreadPoolExecutor, probe: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._try_writing(hand, probe)

    async def _try_writing(self, hand: ThreadPoolExecutor, probe: Callable[[], None]) -> None:
        why = ""
        try:
            await asyncio.get_running_loop().run_in_executor(hand, probe)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what writers would meet
            why = f"{type(error).__name__}: {error}"
        if bool(why) is not bool(self._cannot_write):
            log.log(logging.ERROR if why else logging.INFO, "writing: %s", why or "the gallery can be written to")
        self._cannot_write = why
        await self._tell()

    async def _try(self, ask: Ask) -> None:
        """One canary, and what follows from it."""
        began = time.perf_counter()
        outcome, why = "passed", ""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._ask(ask)
                await asyncio.get_running_loop().run_in_executor(self._hand, self._on_pass)
        except (TimeoutError, TooLate, Overloaded):
            outcome, why = "busy", self._why
            if time.monotonic() - self._answered > STUCK_S:
                why = f"no question has been answered for {STUCK_S:g} s"
        except (GalleryError, ServerFault) as error:
            outcome, why = "failed", f"the canary failed: {error}"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what askers would meet
            outcome, why = "failed", f"the canary failed: {type(error).__name__}: {error}"
        took_s = time.perf_counter() - began
        metrics.observe_canary(outcome, took_s)
        if outcome == "passed":
            self.note_answer()
            self._patience_s = min(MOST_S, max(CANARY_S, 4 * took_s))
        await self._say(why)

    async def _ask(self, ask: Ask) -> None:
        """Raises ServerFault for a wrong answer, and whatever question and gallery raise."""
        expected = await self._expected()
        reply = await ask(self._canary.question(), time.monotonic() + self._patience_s)
        came = reply.hits[0].score if reply.hits else math.nan
        if not self._is_right(came, expected) and not self._is_right(came, expected := await self._expected()):
            # Asked twice: a version may have been promoted, or a picture added, before the answer.
            raise ServerFault(
                f"its best hit has score {came:.4f}; {expected:.4f} was expected. `pocketlens-cloud doctor` tells more"
            )

    async def _expected(self) -> float:
        return await asyncio.get_running_loop().run_in_executor(self._hand, self._canary.expected)

    def _is_right(self, came: float, expected: float) -> bool:
        return abs(came - expected) <= self._canary.margin  # not of NaN

    async def _say(self, why: str) -> None:
        """Say `why` not, or with "" that all is well, wherever it is asked."""
        if self._leaving:
            why = "the server is leaving"
        self._why = why
        if (healthy := not why) is self._said:
            return
        if healthy:
            log.info("healthy: the canary passed")
        else:
            log.log(logging.INFO if self._leaving else logging.ERROR, "not serving: %s", why)
        self._said = healthy
        await self._tell()

    async def _tell(self) -> None:
        metrics.set_healthy(healthy=self.ready)
        writes = self.ready and not self._cannot_write
        for name, healthy in (*((name, self.ready) for name in SERVICES), (WRITING, writes)):
            await self._servicer.set(name, _Status.SERVING if healthy else _Status.NOT_SERVING)


@final
class _UntilGone(health_pb2_grpc.HealthServicer):
    """The library's servicer, whose Watch would never end: a server that stops would wait for those who watch."""

    def __init__(self, inner: grpc_health.HealthServicer, gone: asyncio.Event) -> None:
        self._inner, self._gone = inner, gone

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        return await self._inner.Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        tasks = {asyncio.ensure_future(self._inner.Watch(request, context)), asyncio.ensure_future(self._gone.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
