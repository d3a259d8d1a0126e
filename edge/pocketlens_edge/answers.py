"""What came back for a question, in plain values.

Owns the way from a reply to an Answer, and the last check that it is one to our question. Called by client.py;
knows no network."""

from __future__ import annotations

from dataclasses import dataclass

from pocketlens_wire.errors import ServerFault, SpaceMismatch
from pocketlens_wire.limits import EDITION
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_edge.conditions import Value, from_value
from pocketlens_edge.questions import mode_name

ENVELOPE_BYTES = 300  # see Answer.envelope_bytes

_OF_EDITION_2 = ("where", "modifiers", "least_score", "skip", "group_by", "payload", "rerank")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One gallery picture. score: cosine, -1 to 1. payload: what the gallery knows of it, `file` among it. group: the
    value that it stands under where groups were asked for."""

    id: str
    score: float
    payload: dict[str, Value]
    group: Value | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one question.

    hits: best first.
    times_ms: milliseconds; the server's stages (`check`, `queue`, `text_tower`, `heads`, `search`, and their
        `total`) and `round_trip`, from the call to its reply as the device sees it.
    request_bytes: the serialised request message; 0 where nothing was sent, as the gallery is on this device.
    mode: `zero-shot` or `tuned`, as it was answered.
    notes: what the asker should know, sentences.
    words_used: the words that reached the text tower, if they had to be cut; else empty.
    generation: the state of the gallery that answered; pages of one state belong together.
    reranked: pictures that were sorted anew, where that was asked; 0: none.
    """

    hits: list[Hit]
    times_ms: dict[str, float]
    request_bytes: int
    mode: str
    notes: list[str]
    words_used: str
    generation: str
    token_space: str
    gallery_space: str
    reranked: int = 0

    @property
    def envelope_bytes(self) -> int:
        """Estimate of what gRPC adds to the message on its way up; 0 where nothing was sent.

        Counted: all that HTTP/2 sends for the first question on a connection (its headers, frame headers,
        flow control; 291 bytes seen by a counting proxy, grpcio 1.85). Later questions need about 90, as their
        headers refer to the first's. Not counted: opening the connection (72 bytes, once), TLS and TCP/IP."""
        return ENVELOPE_BYTES if self.request_bytes else 0


def answer_of(
    reply: pb.SearchReply, request: pb.SearchRequest, *, server: str, round_trip_ms: float, request_bytes: int
) -> Answer:
    """The reply in plain values.

    Raises SpaceMismatch if it speaks another token space than the question: a server that did not look at the
    question's must not be believed. ServerFault for one too old to have understood all of the question."""
    if reply.token_space != request.token_space:
        raise SpaceMismatch(
            f"{server} answered in token space `{reply.token_space}`; this device asked in `{request.token_space}`. "
            "Install the edge half of the server's bundle, or ask a server of the device's space."
        )
    if reply.edition < EDITION and (ignored := [name for name in _OF_EDITION_2 if _is_set(request, name)]):
        raise ServerFault(
            f"{server} is too old for this question: it takes no notice of {', '.join(ignored)}. "
            "Ask without, or have the server updated."
        )
    times = reply.times
    return Answer(
        hits=[
            Hit(
                id=hit.id,
                score=hit.score,
                payload={key: from_value(hit.payload[key]) for key in sorted(hit.payload)},
                group=from_value(hit.group) if hit.HasField("group") else None,
            )
            for hit in reply.hits
        ],
        times_ms={
            "check": times.check_ms,
            "queue": times.queue_ms,
            "text_tower": times.text_tower_ms,
            "heads": times.heads_ms,
            "search": times.search_ms,
            "total": times.total_ms,
            "round_trip": round_trip_ms,
        },
        request_bytes=request_bytes,
        mode=mode_name(reply.mode),
        notes=list(reply.notes),
        words_used=reply.words_used,
        generation=reply.generation,
        token_space=reply.token_space,
        gallery_space=reply.gallery_space,
        reranked=reply.reranked,
    )


def _is_set(request: pb.SearchRequest, name: str) -> bool:
    return any(field.name == name for field, _ in request.ListFields())
