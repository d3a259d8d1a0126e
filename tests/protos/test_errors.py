"""The error tree, its one table, and what a client says for each status."""

import grpc
import pytest
from pocketlens_wire import errors
from pocketlens_wire.errors import (
    HTTP_STATUS_OF,
    STATUS_OF,
    BadBundle,
    BadQuery,
    GalleryError,
    NotAllowed,
    Overloaded,
    PocketlensError,
    ServerFault,
    SpaceMismatch,
    TooLate,
    Unauthenticated,
    Unavailable,
    error_from_status,
    status_of,
)


def wire_leaves(kind: type[PocketlensError] = PocketlensError) -> set[type[PocketlensError]]:
    """The tree's leaves as errors.py draws it: what other rooms refine does not count."""
    below = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return set().union(*(wire_leaves(each) for each in below)) if below else {kind}


def test_every_leaf_stands_in_the_table_and_nothing_else_does():
    assert set(STATUS_OF) == set(HTTP_STATUS_OF) == wire_leaves()


def test_every_leaf_has_a_sentence_of_its_own():
    said = {str(error_from_status(STATUS_OF[leaf], "", leaf.__name__)) for leaf in wire_leaves()}
    assert len(said) == len(wire_leaves())


def test_the_tree_is_drawn_in_the_module_docstring():
    assert errors.__doc__ is not None
    for leaf in wire_leaves():
        assert f"- {leaf.__name__} " in errors.__doc__


def test_a_room_may_refine_an_error_and_keeps_its_status():
    class Locked(GalleryError):
        pass

    assert status_of(Locked("held by process 12")) is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), PocketlensError("x")])
def test_what_is_not_in_the_table_is_internal(error):
    assert status_of(error) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("leaf", sorted(wire_leaves(), key=lambda leaf: leaf.__name__))
@pytest.mark.parametrize("as_bytes", [True, False])
def test_with_its_kind_sent_an_error_crosses_the_wire_as_itself(leaf, as_bytes):
    kind = leaf.__name__.encode() if as_bytes else leaf.__name__
    error = error_from_status(status_of(leaf("what happened")), "what happened", kind)
    assert type(error) is leaf
    assert "what happened" in str(error)


@pytest.mark.parametrize("kind", [None, "", "NoSuchError", "Overloaded", "PocketlensError", b"\xff"])
def test_a_kind_that_does_not_fit_the_status_is_ignored(kind):
    error = error_from_status(grpc.StatusCode.FAILED_PRECONDITION, "ts-a against ts-b", kind)
    assert type(error) is SpaceMismatch
    assert str(error) == "ts-a against ts-b"


@pytest.mark.parametrize(
    ("code", "details", "kind", "says"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; ipv4:127.0.0.1:9", Unavailable, "serve"),
        ("CANCELLED", "", Overloaded, "far too much to do"),
        ("CANCELLED", "CANCELLED", Overloaded, "far too much to do"),
        ("CANCELLED", "Channel closed!", Unavailable, "Channel closed!"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", TooLate, "in time"),
        ("RESOURCE_EXHAUSTED", "", Overloaded, "busy"),
        (
            "RESOURCE_EXHAUSTED",
            "SERVER: Received message larger than max (70000 vs. 65536)",
            BadQuery,
            "65536",
        ),
        ("INVALID_ARGUMENT", "top is 0; 1 to 1000", BadQuery, "top is 0; 1 to 1000"),
        ("INVALID_ARGUMENT", "", BadQuery, "refused the request"),
        ("INTERNAL", "Exception deserializing request!", ServerFault, "failed"),
        ("UNKNOWN", "", ServerFault, "failed"),
        ("UNIMPLEMENTED", "Method not found!", ServerFault, "does not offer"),
        ("UNAUTHENTICATED", "who?", Unauthenticated, "who?"),
        ("PERMISSION_DENIED", "", NotAllowed, "does not allow"),
        ("ABORTED", "who?", ServerFault, "who?"),
    ],
)
def test_a_status_becomes_a_plain_sentence(code, details, kind, says):
    error = error_from_status(grpc.StatusCode[code], details)
    assert type(error) is kind
    assert says in str(error)
    assert "StatusCode" not in str(error)


def test_a_service_that_says_why_it_turned_a_question_away_is_quoted_first():
    code, why = grpc.StatusCode.RESOURCE_EXHAUSTED, "key a may ask 4 rows a second, and has asked more"
    ours = error_from_status(code, why, "Overloaded")
    assert (type(ours), str(ours)) == (Overloaded, f"The server turned this question away: {why}.")
    for details, kind in [("", "Overloaded"), (why, None)]:  # nothing said, or said by gRPC or a proxy
        assert str(error_from_status(code, details, kind)).startswith("The server is busy")


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_there_is_gives_one_line(code):
    error = error_from_status(code, "first\n  second")
    assert isinstance(error, PocketlensError)
    assert "\n" not in str(error)


def test_a_damaged_bundle_and_a_gallery_are_told_apart_by_kind():
    code = grpc.StatusCode.FAILED_PRECONDITION
    assert type(error_from_status(code, "x", "BadBundle")) is BadBundle
    assert type(error_from_status(code, "x", "GalleryError")) is GalleryError
