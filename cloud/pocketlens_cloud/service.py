"""Answer one search: check what arrived, compose, search the gallery.

Owns every check on a request and the reply's content. Raises PocketlensError; turning that into a
status, deadlines and threads are server.py's."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire import limits, tokens
from pocketlens_wire.errors import BadQuery, GalleryError, SpaceMismatch
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.compose import Composer, Mode, Plan
from pocketlens_cloud.gallery.filters import Filter, carrying
from pocketlens_cloud.gallery.following import pinned
from pocketlens_cloud.gallery.interface import Gallery, Scored, Search
from pocketlens_cloud.gallery.payload import Scalar, Value, clip
from pocketlens_cloud.towers import Row

log = logging.getLogger(__name__)

WIRE_MODE: dict[Mode, pb.Mode] = {"zero-shot": pb.MODE_ZERO_SHOT, "tuned": pb.MODE_TUNED}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A checked request."""

    plan: Plan
    k: int  # tokens of the sentence, 0 without a picture
    top: int
    where: Filter
    check_ms: float
    checked_at: float  # time.perf_counter() seconds


@final
class Service:
    """Composer and gallery of one server. Safe to call from several threads."""

    def __init__(self, composer: Composer, gallery: Gallery) -> None:
        """Raises SpaceMismatch if gallery and bundle do not belong together, GalleryError for an empty one."""
        self._composer, self._gallery = composer, gallery
        self._manifest = composer.manifest
        if gallery.gallery_space != self._manifest.gallery_space:
            raise SpaceMismatch(
                f"gallery {gallery.title} lies in gallery space `{gallery.gallery_space}`; "
                f"bundle {self._manifest.name} speaks `{self._manifest.gallery_space}`. "
                "Serve it with the bundle it was indexed with, or index again into a new directory"
            )
        if gallery.size == 0:
            raise GalleryError(f"gallery {gallery.title} holds no pictures: index some with `pocketlens-cloud index`")
        self.modes: list[Mode] = [mode for mode in composer.modes if composer.vector_of(mode) in gallery.vectors]
        self._default_mode: Mode = "tuned" if "tuned" in self.modes else "zero-shot"

    def describe(self) -> pb.DescribeReply:
        """What this service speaks and allows."""
        manifest, gallery = self._manifest, self._gallery
        return pb.DescribeReply(
            token_space=manifest.token_space,
            gallery_space=manifest.gallery_space,
            encoders=manifest.encoders,
            modes=[WIRE_MODE[mode] for mode in self.modes],
            default_mode=WIRE_MODE[self._default_mode],
            token_width=manifest.token_width,
            max_tokens=manifest.max_tokens,
            max_top=limits.MAX_TOP,
            max_words_bytes=limits.MAX_WORDS_BYTES,
            max_conditions=limits.MAX_CONDITIONS,
            max_request_bytes=limits.MAX_REQUEST_BYTES,
            generation=gallery.generation,
            gallery_size=gallery.size,
            payload_keys=gallery.payload_keys,
            bundle=manifest.name,
            server_version=version(),
            provider=self._composer.provider,
            unix_ms=time.time_ns() // 1_000_000,
        )

    def check(self, request: pb.SearchRequest) -> Question:
        """Every check on a request, cheapest first, and its rows for the text tower; no model runs.

        Raises BadQuery or SpaceMismatch."""
        started = time.perf_counter()
        self._check_spaces(request)
        if not 1 <= request.top <= limits.MAX_TOP:
            raise BadQuery(f"top must be 1 to {limits.MAX_TOP}; {request.top} came")
        if (size := len(request.words.encode())) > limits.MAX_WORDS_BYTES:
            raise BadQuery(f"words may have {limits.MAX_WORDS_BYTES} bytes of UTF-8; {size} came")
        if not request.HasField("sentence") and not self._composer.clean(request.words):
            raise BadQuery("the query is empty: send a picture's sentence tokens, words, or both")
        mode = self._mode(request.mode)
        where = self._where(request)
        sentence = self._sentence(request)
        plan = self._composer.plan(sentence, request.words, mode)
        now = time.perf_counter()
        return Question(
            plan=plan,
            k=0 if sentence is None else len(sentence),
            top=request.top,
            where=where,
            check_ms=(now - started) * 1e3,
            checked_at=now,
        )

    def read(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The text tower's features (rows, dim); the rows may be those of several questions."""
        return self._composer.read(rows)

    def answer(self, question: Question) -> pb.SearchReply:
        """Read, compose and search, one question alone."""
        began = time.perf_counter()
        texts = self.read(question.plan.rows)
        return self.finish(question, texts, time.perf_counter() - began)

    def finish(self, question: Question, texts: NDArray[np.float32], took_s: float) -> pb.SearchReply:
        """Compose and search, the question's rows having been read as `texts` (rows, dim) in `took_s` seconds.

        Raises GalleryError, ServerFault."""
        read = time.perf_counter()
        composed = self._composer.finish(question.plan, texts)
        headed = time.perf_counter()
        asked = Search(vector=composed.vector, name=composed.vector_name, top=question.top, where=question.where)
        with pinned(self._gallery) as gallery:  # hits and generation of one version
            hits, generation = gallery.search(asked), gallery.generation
        ended = time.perf_counter()
        times = pb.StageTimes(
            check_ms=question.check_ms,
            queue_ms=(read - question.checked_at - took_s) * 1e3,
            text_tower_ms=took_s * 1e3,
            heads_ms=(headed - read) * 1e3,
            search_ms=(ended - headed) * 1e3,
            total_ms=question.check_ms + (ended - question.checked_at) * 1e3,
        )
        # Neither tokens nor words are logged: both tell what a person looked for.
        log.info(
            "%s %s k=%d hits=%d %.1f ms",
            self._manifest.token_space,
            question.plan.mode,
            question.k,
            len(hits),
            times.total_ms,
        )
        return pb.SearchReply(
            hits=[_hit(hit) for hit in hits],
            times=times,
            token_space=self._manifest.token_space,
            gallery_space=self._manifest.gallery_space,
            mode=WIRE_MODE[question.plan.mode],
            generation=generation,
            notes=composed.notes,
            words_used=composed.words_used,
        )

    def _check_spaces(self, request: pb.SearchRequest) -> None:
        ours = self._manifest
        if not request.token_space:
            raise BadQuery(f"token_space is missing; this server speaks `{ours.token_space}`")
        if request.token_space != ours.token_space:
            raise SpaceMismatch(
                f"the query speaks token space {clip(request.token_space)}; "
                f"this server speaks `{ours.token_space}`. Install the edge half of bundle {ours.name} "
                "on the device, or ask a server of the device's space"
            )
        if request.gallery_space and request.gallery_space != ours.gallery_space:
            raise SpaceMismatch(
                f"the query expects gallery space {clip(request.gallery_space)}; "
                f"this server's gallery lies in `{ours.gallery_space}`. "
                "Ask Describe for the server's spaces, or leave gallery_space empty"
            )
        if not request.HasField("sentence"):
            return
        if not request.encoder:
            raise BadQuery("encoder is missing: a sentence must say which encoder made it")
        if request.encoder not in ours.encoders:
            raise SpaceMismatch(
                f"encoder {clip(request.encoder)} is not one this server accepts: "
                f"{', '.join(f'`{encoder}`' for encoder in ours.encoders)}. "
                f"Install the edge half of bundle {ours.name} on the device"
            )

    def _sentence(self, request: pb.SearchRequest) -> NDArray[np.float32] | None:
        if not request.HasField("sentence"):
            return None
        return tokens.unpack(request.sentence, width=self._manifest.token_width, max_tokens=self._manifest.max_tokens)

    def _mode(self, asked: int) -> Mode:
        if asked == pb.MODE_UNSPECIFIED:
            return self._default_mode
        for mode in self.modes:
            if WIRE_MODE[mode] == asked:
                return mode
        name = next((mode for mode, wire in WIRE_MODE.items() if wire == asked), f"number {asked}")
        raise BadQuery(f"mode {name} is not held by this gallery; it holds {', '.join(self.modes)}")

    def _where(self, request: pb.SearchRequest) -> Filter:
        if len(request.filter) > limits.MAX_CONDITIONS:
            raise BadQuery(f"a filter may have {limits.MAX_CONDITIONS} conditions; {len(request.filter)} came")
        values: dict[str, Scalar] = {}
        for condition in request.filter:
            kind = condition.equals.WhichOneof("kind")
            if kind is None:
                raise BadQuery(f"filter key {clip(condition.key)} has no value")
            if condition.key in values:
                raise BadQuery(f"filter key {clip(condition.key)} is named twice; all conditions must hold at once")
            values[condition.key] = getattr(condition.equals, kind)
        where = carrying(values)
        self._gallery.check_filter(where)
        return where


def version() -> str:
    """Version of Pocketlens; "0" where it runs from a source tree without installation."""
    try:
        return metadata.version("pocketlens")
    except metadata.PackageNotFoundError:
        return "0"


def _hit(hit: Scored) -> pb.Hit:
    return pb.Hit(id=hit.id, score=hit.score, payload={key: _value(value) for key, value in hit.payload.items()})


def _value(value: Value) -> pb.Value:
    match value:
        case bool():
            return pb.Value(flag=value)
        case int():
            return pb.Value(integer=value)
        case float():
            return pb.Value(number=value)
        case str():
            return pb.Value(text=value)
        case _:  # lists and places, of which the wire knows nothing
            return pb.Value(text=json.dumps(value, ensure_ascii=False))
