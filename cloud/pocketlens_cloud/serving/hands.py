"""Threads for what must not hold up the event loop: checks of questions, searches that are long or far away.

One of them works, until it is held up. Nearly all of that work is Python's own, which one thread at a time can run:
several only wait for each other, and whoever reads the text tower waits with them. But a search may read a disk or ask
a server far away: what waits behind it then goes to one more thread. Called by front.py."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from threading import Lock, get_ident
from typing import Any, Final, NamedTuple, TypeVar, final

HELD_UP_S: Final = 0.005  # in one piece of work, while another waits, before one more thread is woken

_Result = TypeVar("_Result")


class _Piece(NamedTuple):
    future: "asyncio.Future[Any]"
    work: Callable[..., Any]
    given: tuple[object, ...]


_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


@final
class Hands:
    """At most `most` threads of `pool`, for the coroutines of one event loop."""

    def __init__(self, pool: Executor, most: int) -> None:
        self._pool, self._most = pool, most
        self._lock = Lock()  # for the next three
        self._asked: deque[_Piece] = deque()
        self._awake = 0  # threads at work, or about to be
        self._began: dict[int, float] = {}  # when each began the piece it is at, by the loop's clock
        self._done: deque[_Outcome] = deque()
        self._telling = False
        self._watching: asyncio.TimerHandle | None = None

    async def do(self, work: Callable[..., _Result], *given: object) -> _Result:
        """`work(*given)` in a thread. A cancelled call cancels it: work that has not begun never begins.

        Raises what `work` raises; RuntimeError once the pool is going down."""
        loop = asyncio.get_running_loop()
        piece = _Piece(loop.create_future(), work, given)
        with self._lock:
            self._asked.append(piece)
            sleeping = not self._awake
        if sleeping:
            self._wake_one(loop)
        if self._watching is None:
            self._watch(loop)
        try:
            return await piece.future
        finally:
            del piece  # an error it holds would hold this frame, and so itself

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watching = loop.call_later(HELD_UP_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake one more thread if those awake are held up; look again while any is."""
        self._watching = None
        if self._are_held_up(loop.time()):
            self._wake_one(loop)
        if self._awake:
            self._watch(loop)

    def _are_held_up(self, now: float) -> bool:
        with self._lock:
            if not self._asked or self._awake == self._most or self._awake > len(self._began):
                return False
            return now - max(self._began.values()) > HELD_UP_S

    def _wake_one(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._awake += 1
        try:
            self._pool.submit(self._work, loop)
        except RuntimeError as error:  # the pool is going down
            with self._lock:
                self._awake -= 1
                left, self._asked = self._asked, deque()
            for piece in left:
                _tell(piece.future, None, error)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: piece after piece until none is left. The loop is called once for all that is done before it
        comes to look."""
        while piece := self._next(loop.time()):
            if not piece.future.cancelled():
                self._done.append((piece.future, *_outcome(piece.work, piece.given)))
                if not self._telling:
                    self._telling = True
                    with suppress(RuntimeError):  # the loop is closed: nobody waits
                        loop.call_soon_threadsafe(self._tell_all)

    def _next(self, now: float) -> _Piece | None:
        with self._lock:
            if self._asked:
                self._began[get_ident()] = now
                return self._asked.popleft()
            self._awake -= 1
            self._began.pop(get_ident(), None)
            return None

    def _tell_all(self) -> None:
        self._telling = False  # before the first is told: what is done from now on calls again
        while self._done:
            _tell(*self._done.popleft())


def _outcome(work: Callable[..., Any], given: tuple[object, ...]) -> tuple[Any, BaseException | None]:
    try:
        return work(*given), None
    except StopIteration as error:  # which a future does not take
        return None, RuntimeError(f"the work raised {error!r}")
    except BaseException as error:  # noqa: BLE001 - whoever asked is told, whatever it is
        return None, error


def _tell(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
