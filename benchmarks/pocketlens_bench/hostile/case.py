"""What one case of the checklist is, and the words for how it ends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from pocketlens_wire.errors import (
    KIND_METADATA,
    STATUS_OF,
    BadPicture,
    BadQuery,
    NotAllowed,
    Overloaded,
    PocketlensError,
    SpaceMismatch,
    Unauthenticated,
)

if TYPE_CHECKING:
    from pocketlens_bench.hostile.target import Target

Act = Callable[["Target"], str]

ANSWERED: Final = "OK"
GONE: Final = "connection closed"
OPEN: Final = "connection open"
TOO_LARGE: Final = "RESOURCE_EXHAUSTED"  # gRPC's own, which has no kind
UNKNOWN_METHOD: Final = "UNIMPLEMENTED"
CANCELLED: Final = "CANCELLED"


def ending(error: PocketlensError | type[PocketlensError]) -> str:
    """Status and kind of one of our errors: `INVALID_ARGUMENT BadQuery`."""
    kind = error if isinstance(error, type) else type(error)
    return f"{STATUS_OF[kind].name} {kind.__name__}"


def ending_of_call(error: grpc.RpcError) -> str:
    """The same of a call that failed; only the status where no kind came with it."""
    call: grpc.Call = error  # pyright: ignore[reportAssignmentType] - what a stub raises is both
    kind = dict(call.trailing_metadata() or ()).get(KIND_METADATA, "")
    return f"{call.code().name} {kind}".strip()


REFUSED: Final = ending(BadQuery)
MISMATCH: Final = ending(SpaceMismatch)
NO_PICTURE: Final = ending(BadPicture)
BUSY: Final = ending(Overloaded)  # no ending of a case: it is tried again
NO_KEY: Final = ending(Unauthenticated)
FORBIDDEN: Final = ending(NotAllowed)


class Lacking(Exception):
    """The server that is tried does not offer what a case needs; the message says what."""


@dataclass(frozen=True)
class Case:
    """id: as in `--case`. kind: which class of the checklist. does: one line. ends: the endings that are right; several
    where the transport may choose. act: does it, and returns how it ended."""

    id: str
    kind: str
    does: str
    ends: tuple[str, ...]
    act: Act


def case(kind: str, name: str, does: str, ends: str | tuple[str, ...], act: Act) -> Case:
    """One line of a list."""
    return Case(f"{kind}-{name}", kind, does, (ends,) if isinstance(ends, str) else ends, act)
