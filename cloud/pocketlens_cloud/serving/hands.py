"""Threads for what must not hold up the event loop: checks of questions, searches.

What is asked of them in one turn of the loop is done by one of them, one after the other: the questions of one run of
the text tower end together, and handing over and back costs as much as half of such a piece of work. Called by
front.py."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar, final

TOGETHER: Final = 8  # pieces of work that one thread does one after the other, a millisecond each

_Result = TypeVar("_Result")


class _Piece(NamedTuple):
    future: "asyncio.Future[Any]"
    work: Callable[..., Any]
    given: tuple[object, ...]


@final
class Hands:
    """The threads of `pool`, for coroutines of one event loop."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._asked: list[_Piece] = []

    async def do(self, work: Callable[..., _Result], *given: object) -> _Result:
        """`work(*given)` in a thread. A cancelled call cancels it: work that has not begun never begins."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._hand_over)
        piece = _Piece(loop.create_future(), work, given)
        self._asked.append(piece)
        return await piece.future

    def _hand_over(self) -> None:
        asked, self._asked = self._asked, []
        loop = asyncio.get_running_loop()
        for start in range(0, len(asked), TOGETHER):
            pieces = asked[start : start + TOGETHER]
            try:
                self._pool.submit(_do_all, pieces, loop)
            except RuntimeError as error:  # the pool is going down
                _tell([(piece, None, error) for piece in pieces])


_Outcome = tuple[_Piece, Any, BaseException | None]


def _do_all(pieces: list[_Piece], loop: asyncio.AbstractEventLoop) -> None:
    outcomes = [_done(piece) for piece in pieces if not piece.future.cancelled()]
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_tell, outcomes)


def _done(piece: _Piece) -> _Outcome:
    try:
        return piece, piece.work(*piece.given), None
    except BaseException as error:  # noqa: BLE001 - whoever asked is told, whatever it is
        return piece, None, error


def _tell(outcomes: list[_Outcome]) -> None:
    for piece, result, error in outcomes:
        if piece.future.done():  # cancelled meanwhile
            continue
        if error is None:
            piece.future.set_result(result)
        else:
            piece.future.set_exception(error)
