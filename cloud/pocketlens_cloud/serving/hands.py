"""Threads for what must not hold up the event loop: checks of questions, searches.

One of them works, until it is held up. Nearly all of that work is Python's own, which one thread at a time can run:
several only wait for each other, and whoever reads the text tower waits with them. But a search may read a disk or ask
a server far away, and what was asked behind it then goes to the next thread. Called by front.py."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from threading import Lock
from typing import Any, Final, NamedTuple, TypeVar, final

HELD_UP_S: Final = 0.02  # that a piece of work may wait before one more thread is woken
TOGETHER: Final = 8  # pieces of work whose end the loop is told of at once, if none takes long

_Result = TypeVar("_Result")


class _Piece(NamedTuple):
    future: "asyncio.Future[Any]"
    work: Callable[..., Any]
    given: tuple[object, ...]
    since: float


_Outcome = tuple[_Piece, Any, BaseException | None]


@final
class Hands:
    """At most `most` threads of `pool`, for the coroutines of one event loop."""

    def __init__(self, pool: Executor, most: int) -> None:
        self._pool, self._most = pool, most
        self._asked: deque[_Piece] = deque()
        self._awake = 0  # threads at work; with what is asked, under the lock
        self._lock = Lock()
        self._done: deque[_Outcome] = deque()
        self._telling = False
        self._watching: asyncio.TimerHandle | None = None

    async def do(self, work: Callable[..., _Result], *given: object) -> _Result:
        """`work(*given)` in a thread. A cancelled call cancels it: work that has not begun never begins.

        Raises what `work` raises; RuntimeError once the pool is going down."""
        loop = asyncio.get_running_loop()
        piece = _Piece(loop.create_future(), work, given, loop.time())
        with self._lock:
            self._asked.append(piece)
            sleeping = not self._awake
        if sleeping:
            self._wake_one(loop)
        if self._watching is None:
            self._watch(loop)
        return await piece.future

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watching = loop.call_later(HELD_UP_S / 2, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake one more thread if those awake are held up; look again while any is."""
        self._watching = None
        self._tell_all()
        with self._lock:
            oldest = self._asked[0].since if self._asked else loop.time()
        if self._awake < self._most and loop.time() - oldest > HELD_UP_S:
            self._wake_one(loop)
        if self._awake:
            self._watch(loop)

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
                _tell(piece, None, error)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: piece after piece until none is left. The loop is not called after each, since it would want
        the processor from this thread at once."""
        while piece := self._next():
            if not piece.future.cancelled():
                self._done.append(_outcome(piece))
                if not self._telling:
                    self._telling = True
                    with suppress(RuntimeError):
                        loop.call_soon_threadsafe(self._tell_all)

    def _next(self) -> _Piece | None:
        with self._lock:
            if self._asked:
                return self._asked.popleft()
            self._awake -= 1
            return None

    def _tell_all(self) -> None:
        self._telling = False
        while self._done:
            _tell(*self._done.popleft())


def _outcome(piece: _Piece) -> _Outcome:
    try:
        return piece, piece.work(*piece.given), None
    except StopIteration as error:  # which a future does not take
        return piece, None, RuntimeError(f"the work raised {error!r}")
    except BaseException as error:  # noqa: BLE001 - whoever asked is told, whatever it is
        return piece, None, error


def _tell(piece: _Piece, result: Any, error: BaseException | None) -> None:
    if piece.future.done():  # cancelled meanwhile
        return
    if error is None:
        piece.future.set_result(result)
    else:
        piece.future.set_exception(error)
