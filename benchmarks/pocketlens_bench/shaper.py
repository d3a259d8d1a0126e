"""A slow network between a client and a server on this machine: a TCP proxy that lets bytes through as one would.

The kernel's own emulation (netem) needs rights and a module that many machines lack; this works at the socket, for
anyone. What is modelled stands in MODEL. Called by network.py, never by the product."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Any, Self

import numpy as np

SEGMENT = 1460  # bytes of a TCP segment on Ethernet
WINDOW = 10  # segments a fresh or idle connection may send at once (RFC 6928)
TAIL = 3  # segments at a burst's end whose loss is noticed by a timer alone
MIN_TIMEOUT_S = 0.2  # Linux's shortest retransmission timer
MODEL = (
    "Modelled at the socket, each way by itself: bandwidth (segments of 1,460 bytes one after the other), propagation "
    "delay, jitter without overtaking, one round trip to open the connection, slow start (10 segments in the first "
    "round trip, doubling, anew after an idle second), and loss: a lost segment comes one round trip late, or a timer "
    "of at least 200 ms and two round trips late at a burst's end, and all behind it waits. Not modelled: halving of "
    "the window after a loss, TLS, queues filled by others, radio wake-up"
)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A network. Bandwidths in Mbit/s, one-way delay and jitter in ms, loss as a share of segments."""

    name: str
    up_mbit: float
    down_mbit: float
    delay_ms: float
    jitter_ms: float
    loss: float
    source: str

    @property
    def round_trip_s(self) -> float:
        return 2 * self.delay_ms / 1e3


class Lane:
    """One direction of one connection: when each byte arrives. Pure arithmetic on a clock that is given."""

    def __init__(self, profile: Profile, mbit: float, opened: float, seed: int) -> None:
        self._profile, self._rate = profile, mbit * 1e6 / 8
        self._rng = np.random.default_rng(seed)
        self._free = self._begun = opened + profile.round_trip_s  # SYN and its answer
        self._sent = 0  # segments of this burst
        self._arrived = 0.0

    def arrivals(self, count: int, now: float) -> list[tuple[float, int]]:
        """When the segments of `count` bytes written at `now` arrive, and how many bytes each carries."""
        if now > self._free + 1.0:  # idle: the window is small again
            self._begun, self._sent = now, 0
        sizes = [SEGMENT] * (count // SEGMENT) + ([count % SEGMENT] if count % SEGMENT else [])
        return [(self._arrival(size, now, place >= len(sizes) - TAIL), size) for place, size in enumerate(sizes)]

    def _arrival(self, size: int, now: float, at_end: bool) -> float:  # noqa: FBT001
        round_trip = self._profile.round_trip_s
        rounds = int(np.log2(self._sent / WINDOW + 1))
        start = max(now, self._free, self._begun + rounds * round_trip)
        self._free = start + size / self._rate
        self._sent += 1
        late = self._rng.exponential(self._profile.jitter_ms / 1e3) if self._profile.jitter_ms else 0.0
        if self._rng.random() < self._profile.loss:
            late += max(MIN_TIMEOUT_S, 2 * round_trip) if at_end else round_trip
        self._arrived = max(self._arrived, self._free + self._profile.delay_ms / 1e3 + late)
        return self._arrived


class Shaper:
    """Context manager: listens on `address` and passes everything on to `server` (HOST:PORT) as over `profile`. Runs
    in a thread of its own; `up` and `down` count bytes."""

    def __init__(self, server: str, profile: Profile, *, seed: int = 0) -> None:
        host, _, port = server.rpartition(":")
        self._server, self._profile, self._seed = (host, int(port)), profile, seed
        self.up = self.down = 0
        self.address = ""
        self._ready = Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened = monotonic()
        self._seed += 2
        far_reader, far_writer = await asyncio.open_connection(*self._server)
        up = Lane(self._profile, self._profile.up_mbit, opened, self._seed)
        down = Lane(self._profile, self._profile.down_mbit, opened, self._seed + 1)
        ways = self._pass(reader, far_writer, up, "up"), self._pass(far_reader, writer, down, "down")
        self._start(self._until_both_end(ways, (writer, far_writer)))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_both_end(
        self, ways: tuple[Coroutine[Any, Any, None], ...], writers: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        """Half-closed connections stay open the other way."""
        try:
            await asyncio.gather(*ways)
        finally:
            for writer in writers:
                writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lane: Lane, way: str) -> None:
        """Read at once, write when it has arrived; an end of the stream is passed on behind its last byte."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                arrival, piece = await queue.get()
                await asyncio.sleep(max(0.0, arrival - monotonic()))
                if not piece:
                    break
                writer.write(piece)
                await writer.drain()
            with suppress(OSError):  # the other side has gone
                writer.write_eof()

        delivery = asyncio.create_task(deliver())
        with suppress(ConnectionError, asyncio.CancelledError):
            while chunk := await reader.read(64 * 1024):
                setattr(self, way, getattr(self, way) + len(chunk))
                start = 0
                for arrival, size in lane.arrivals(len(chunk), monotonic()):
                    queue.put_nowait((arrival, chunk[start : start + size]))
                    start += size
            queue.put_nowait((0.0, b""))
            await delivery
        delivery.cancel()
