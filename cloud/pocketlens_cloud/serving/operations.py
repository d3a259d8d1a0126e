"""What whoever runs a server is given: health, figures, ids and traces, put around the server's own parts.

Owns how these hang together; each is its own file's. server.py and front.py know nothing of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import final

import grpc.aio

from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import metrics
from pocketlens_cloud.serving.canary import Canary
from pocketlens_cloud.serving.front import Front
from pocketlens_cloud.serving.health import EVERY_S, Health
from pocketlens_cloud.serving.observe import Interceptor, Observer
from pocketlens_cloud.serving.traces import Tracing

log = logging.getLogger(__name__)


@final
class Operations:
    """Around one server, in one event loop."""

    def __init__(
        self,
        service: Service,
        canary: Canary,
        *,
        tracing: Tracing | None = None,
        monitor: tuple[str, int] | None = None,
        on_monitor: Callable[[int], None] = lambda _: None,
        reflect: bool = False,
        canary_every_s: float = EVERY_S,
    ) -> None:
        """monitor: host and port of the HTTP port for machines; `on_monitor` gets the port it is. reflect: tell the
        schema to who asks for it."""
        self._service, self._monitor, self._on_monitor = service, monitor, on_monitor
        self._reflect, self._tracing = reflect, tracing
        self.health = Health(canary, every_s=canary_every_s, on_pass=lambda: metrics.say_what_runs(service.describe()))
        self.observer = Observer(tracing, on_answer=self.health.note_answer, on_fault=self.health.doubt)

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """To stand before all others."""
        return [Interceptor(self.observer)]

    @property
    def further(self) -> Sequence[Callable[[grpc.aio.Server], None]]:
        """Services of their own."""
        return [self.health.add_to, *([self._add_reflection] if self._reflect else [])]

    def beside(
        self, other: Callable[[Front], AbstractAsyncContextManager[object]] | None = None
    ) -> Callable[[Front], AbstractAsyncContextManager[object]]:
        """What runs beside the server: canaries, the HTTP port, and `other`. The first canary is back when it is
        entered."""

        @asynccontextmanager
        async def entered(front: Front) -> AsyncIterator[None]:
            async with AsyncExitStack() as held:
                if self._tracing:
                    held.callback(self._tracing.close)
                metrics.say_what_runs(self._service.describe())
                _watch(front)
                await held.enter_async_context(self.health.watching(front.ask))
                if self._monitor:
                    from pocketlens_cloud.serving import monitoring

                    host, port = self._monitor
                    self._on_monitor(held.enter_context(monitoring.listening(self.health, host=host, port=port)))
                await held.enter_async_context(other(front) if other else nullcontext())
                yield

        return entered

    async def leave(self, drain_s: float, hurry: asyncio.Event) -> None:
        """Say that this server goes, and return when `drain_s` seconds are over or `hurry` is set: until then new
        calls are answered as ever, so that those who were told have time to go elsewhere."""
        log.info("leaving: health says so; calls are taken for %g s more", drain_s)
        await self.health.leave(_either(hurry, drain_s))

    def _add_reflection(self, server: grpc.aio.Server) -> None:
        from grpc_reflection.v1alpha import reflection

        names = [name for name in self.health.services if name]
        reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)


async def _either(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def _watch(front: Front) -> None:
    """Let the figures see the queue."""
    batcher = front.batcher
    metrics.watch_queue(lambda: batcher.waiting, lambda: front.wait_s)
    batcher.on_run = metrics.observe_batch

    def rows() -> Mapping[str, int]:
        counts = asdict(batcher.counts)
        return {what: counts[name] for what, name in metrics.ROW_FATES.items()}

    metrics.watch_rows(rows)
