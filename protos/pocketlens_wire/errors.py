"""Every way Pocketlens says no, and the one table to gRPC status codes and to HTTP's.

    PocketlensError
    |- BadPicture      the picture file is unreadable, too large or too small
    |- BadQuery        something in the request is wrong
    |- SpaceMismatch   the two sides speak different spaces
    |- BadBundle       a bundle is incomplete, altered, or from another version
    |- GalleryError    the gallery is empty, locked, unwritable or damaged
    |- Unauthenticated the server does not know who asks
    |- NotAllowed      it knows, and this one may not
    |- Overloaded      the server sheds load; ask again later
    |- Unavailable     no server answers
    |- TooLate         the deadline passed
    `- ServerFault     a fault inside the server

A message is for the user's eyes: it names the thing, what was expected, what came, and the next step.
Raised in every room; turned into a status by the service and back into an error by the client.
"""

from typing import Final

import grpc


class PocketlensError(Exception):
    """Base of all errors a user may meet. Raise a leaf, catch this."""


class BadPicture(PocketlensError):
    """A picture cannot be used: missing, unreadable, truncated, too large, too small."""


class BadQuery(PocketlensError):
    """A request breaks a rule: empty, out of range, malformed tokens, unknown filter key."""


class SpaceMismatch(PocketlensError):
    """Token space, gallery space or encoder do not belong together. The message holds both ids."""


class BadBundle(PocketlensError):
    """A bundle is missing, incomplete, altered or from a newer version. Names the file and the key."""


class GalleryError(PocketlensError):
    """A gallery is empty, held by another process, unwritable or damaged."""


class Unauthenticated(PocketlensError):
    """No key came with the call, or one that is unknown, expired, revoked, or was sent where others can read it."""


class NotAllowed(PocketlensError):
    """The key is good, and not for this call; or the call is answered to none from there."""


class Overloaded(PocketlensError):
    """The server has more work than it can finish in time and refused this one.

    retry_after_s: seconds after which it expects to have room."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(PocketlensError):
    """No server answers at that address."""


class TooLate(PocketlensError):
    """The answer did not come before the deadline."""


class ServerFault(PocketlensError):
    """The server failed in a way that is not the asker's fault."""


STATUS_OF: Final[dict[type[PocketlensError], grpc.StatusCode]] = {
    BadPicture: grpc.StatusCode.INVALID_ARGUMENT,
    BadQuery: grpc.StatusCode.INVALID_ARGUMENT,
    SpaceMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    BadBundle: grpc.StatusCode.FAILED_PRECONDITION,
    GalleryError: grpc.StatusCode.FAILED_PRECONDITION,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    TooLate: grpc.StatusCode.DEADLINE_EXCEEDED,
    ServerFault: grpc.StatusCode.INTERNAL,
}

# The same tree for the page's gateway, which speaks HTTP and names the kind in the body.
HTTP_STATUS_OF: Final[dict[type[PocketlensError], int]] = {
    BadPicture: 400,
    BadQuery: 400,
    SpaceMismatch: 409,  # both sides are sound, together they are not
    BadBundle: 500,
    GalleryError: 500,
    Unauthenticated: 401,
    NotAllowed: 403,
    Overloaded: 503,
    Unavailable: 503,
    TooLate: 504,
    ServerFault: 500,
}

# A service may send the class name of its error under this trailing-metadata key, so that the client can tell
# the three kinds of FAILED_PRECONDITION apart (`kind` of error_from_status).
KIND_METADATA: Final = "pocketlens-error"

# Of an Overloaded that gRPC made, because calls stood in line before the server, or because the server stopped.
WITHOUT_A_WORD: Final = "ended the call without a word"

# Trailing metadata of an Overloaded: milliseconds after which to ask again, as a decimal integer.
RETRY_METADATA: Final = "pocketlens-retry-after-ms"

# What a status means when the server did not send a kind.
_KIND_OF: Final[dict[grpc.StatusCode, type[PocketlensError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadQuery,
    grpc.StatusCode.OUT_OF_RANGE: BadQuery,
    grpc.StatusCode.FAILED_PRECONDITION: SpaceMismatch,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: TooLate,
}

# These details were written for the user by our own service; the others come from gRPC and are quoted.
_PASSED_ON: Final = {BadPicture, BadQuery, SpaceMismatch, BadBundle, GalleryError, Unauthenticated, NotAllowed}

_SENTENCES: Final[dict[type[PocketlensError], str]] = {
    BadPicture: "The server could not use the picture. Try another one.",
    BadQuery: "The server refused the request as malformed. Check the words, tokens and filters.",
    SpaceMismatch: "The device's bundle and the server's do not belong together. "
    "Install the edge half of the server's bundle.",
    BadBundle: "The server's bundle is unusable. On the server, `pocketlens-cloud doctor` says why.",
    GalleryError: "The server's gallery is unusable. On the server, index the pictures again.",
    Unauthenticated: "The server wants a key, and did not take this device's. Ask whoever runs the server for one.",
    NotAllowed: "The server knows this device's key, and does not allow it this call.",
    Overloaded: "The server is busy and refused this question. Ask again in a few seconds.",
    Unavailable: "No Pocketlens server answers there. Check the address, or start one with `pocketlens-cloud serve`.",
    TooLate: "The server did not answer in time. Ask again, or allow more time.",
    ServerFault: "The server failed on this question. Its log says why.",
}


def status_of(error: BaseException) -> grpc.StatusCode:
    """gRPC status code of an error; anything that is not ours is INTERNAL."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF:
            return STATUS_OF[kind]
    return grpc.StatusCode.INTERNAL


def http_status_of(error: BaseException) -> int:
    """HTTP status of an error; anything that is not ours is 500."""
    return next((HTTP_STATUS_OF[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS_OF), 500)


def error_from_status(code: grpc.StatusCode, details: str, kind: str | bytes | None = None) -> PocketlensError:
    """The error a client raises for a failed call: one plain sentence, never a stack of gRPC words.

    code, details: of the failed call. kind: value of the trailing metadata KIND_METADATA if the server sent
    it; ignored when it is unknown or does not go with the code. Returned, not raised.
    """
    details = " ".join(details.split())
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:  # gRPC's own words
        return BadQuery(f"The message is larger than the other side accepts ({details}). Shorten the words.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerFault(
            "The server there does not offer pocketlens.v1.Retrieval: another program, or a version too old "
            f"or too new. Check the address and the versions.{_quoted(details)}"
        )
    if code is grpc.StatusCode.CANCELLED and details in ("", "CANCELLED"):  # by gRPC over there, not by its service
        return Overloaded(
            f"The server {WITHOUT_A_WORD}: it has far too much to do, or is being stopped. Ask again in a few seconds."
        )
    sent = kind.decode("ascii", "replace") if isinstance(kind, bytes) else kind
    error = _KIND_OF.get(code, ServerFault)
    for named in STATUS_OF:
        if named.__name__ == sent and STATUS_OF[named] is code:
            error = named
    if error in _PASSED_ON:
        return error(details or _SENTENCES[error])
    if error is Overloaded and sent == Overloaded.__name__ and details:  # our service's reason: a rate, a full house
        return Overloaded(f"The server turned this question away: {details.rstrip('.')}.")
    return error(_SENTENCES[error] + _quoted(details))


def _quoted(details: str) -> str:
    return f" (It said: {details})" if details else ""
