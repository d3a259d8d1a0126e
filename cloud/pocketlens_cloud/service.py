"""Answer one search: check what arrived, compose, search the gallery.

Owns every check on a request and the reply's content. Raises PocketlensError; turning that into a
status, deadlines and threads are server.py's."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire import limits, tokens
from pocketlens_wire.errors import BadQuery, GalleryError, SpaceMismatch
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.compose import Composer, Mode, Modifier, Plan
from pocketlens_cloud.conditions import filter_of
from pocketlens_cloud.gallery.checks import check_search
from pocketlens_cloud.gallery.following import pinned
from pocketlens_cloud.gallery.interface import Gallery, Scored, Search
from pocketlens_cloud.gallery.payload import Value, clip
from pocketlens_cloud.rerank import RERANK, rerank
from pocketlens_cloud.towers import Row

log = logging.getLogger(__name__)

QUICK_HITS: Final = 100  # found and written in 4 ms, less than the 5 ms after which Python takes its lock from a thread
QUICK_VALUES: Final = 1000  # of those hits' payload
LISTS: Final = frozenset({"texts", "integers"})  # kinds of payload of which one value may be hundreds

WIRE_MODE: dict[Mode, pb.Mode] = {"zero-shot": pb.MODE_ZERO_SHOT, "tuned": pb.MODE_TUNED}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A checked request."""

    plan: Plan
    k: int  # tokens of the sentence, 0 without a picture
    search: Search  # but for its vector
    payload: list[str] | None  # keys the asker wants back; None: all
    rerank: bool
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

    @property
    def provider(self) -> str:
        """Execution provider of the text tower."""
        return self._composer.provider

    @property
    def packs(self) -> bool:
        """Whether the text tower reads no padding."""
        return self._composer.packs

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
            max_modifiers=limits.MAX_MODIFIERS,
            max_filter_depth=limits.MAX_FILTER_DEPTH,
            max_values=limits.MAX_VALUES,
            max_filter_bytes=limits.MAX_FILTER_BYTES,
            max_reach=limits.MAX_REACH,
            max_turns=limits.MAX_TURNS,
            max_conversation_bytes=limits.MAX_CONVERSATION_BYTES,
            max_idle_s=limits.MAX_IDLE_S,
            reranks=True,
            max_groups=limits.MAX_GROUPS,
        )

    def check(self, request: pb.SearchRequest) -> Question:
        """Every check on a request, cheapest first, and its rows for the text tower; no model runs.

        Raises BadQuery or SpaceMismatch."""
        started = time.perf_counter()
        self._check_spaces(request)
        _check_page(request)
        modifiers = _modifiers(request)
        mode = self._mode(request.mode)
        search = self._search(request, mode)
        sentence = self._sentence(request)
        plan = self._composer.plan(sentence, modifiers, mode)
        now = time.perf_counter()
        return Question(
            plan=plan,
            k=0 if sentence is None else len(sentence),
            search=search,
            payload=list(request.payload.keys) if request.HasField("payload") else None,
            rerank=request.rerank,
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

    def finishes_quickly(self, question: Question) -> bool:
        """Whether `finish` is a few ms of this process's own work, which a thread of its own would not hide from the
        others: qdrant-edge 0.9.0 holds Python's lock while it searches."""
        asked, kinds = question.search, self._gallery.payload_kinds
        if not self._gallery.in_process or question.rerank or asked.group_by:
            return False
        keys = kinds.keys() if asked.payload is None else asked.payload
        has_lists = any(kinds.get(key) in LISTS for key in keys)
        hits = asked.skip + asked.top
        return hits <= QUICK_HITS and hits * len(keys) <= QUICK_VALUES and not has_lists

    def finish(self, question: Question, texts: NDArray[np.float32], took_s: float) -> pb.SearchReply:
        """Compose and search, the question's rows having been read as `texts` (rows, dim) in `took_s` seconds.

        Raises GalleryError, ServerFault."""
        read = time.perf_counter()
        composed = self._composer.finish(question.plan, texts)
        headed = time.perf_counter()
        with pinned(self._gallery) as gallery:  # hits and generation of one version
            hits, reranked = _hits(gallery, question, composed.vector)
            generation = gallery.generation
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
        log.debug(
            "%s %s k=%d hits=%d %.1f ms",
            self._manifest.token_space,
            question.plan.mode,
            question.k,
            len(hits),
            times.total_ms,
        )
        return pb.SearchReply(
            hits=[_hit(hit, question) for hit in hits],
            times=times,
            token_space=self._manifest.token_space,
            gallery_space=self._manifest.gallery_space,
            mode=WIRE_MODE[question.plan.mode],
            generation=generation,
            notes=composed.notes,
            words_used=composed.words_used,
            reranked=reranked,
            edition=limits.EDITION,
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

    def _search(self, request: pb.SearchRequest, mode: Mode) -> Search:
        """What the gallery will be asked, but for the vector."""
        keys = {*request.payload.keys, *([request.group_by] if request.group_by else [])}
        asked = Search(
            vector=np.empty(0, np.float32),
            name=self._composer.vector_of(mode),
            top=request.top,
            where=filter_of(request.filter, request.where),
            skip=request.skip,
            least_score=request.least_score if request.HasField("least_score") else None,
            payload=sorted(keys) if request.HasField("payload") else None,
            group_by=request.group_by or None,
            group_size=request.group_size or 1,
        )
        check_search(asked, self._gallery.payload_kinds, self._gallery.vectors)
        return asked


def _check_page(request: pb.SearchRequest) -> None:
    """Every bound on how many hits there are, and which of them."""
    top, size = request.top, request.group_size or 1
    if not 1 <= top <= limits.MAX_TOP:
        raise BadQuery(f"top must be 1 to {limits.MAX_TOP}; {top} came")
    reach, what = (limits.MAX_GROUPS, "groups") if request.group_by else (limits.MAX_REACH, "hits")
    if request.skip + top > reach:
        raise BadQuery(f"skip and top together reach at most {reach} {what}; {request.skip} and {top} came")
    if request.group_size and not request.group_by:
        raise BadQuery("group_size says how large the groups of group_by are; group_by is missing")
    if top * size > limits.MAX_TOP:
        raise BadQuery(f"{top} groups of {size} are more than {limits.MAX_TOP} hits")
    if request.HasField("least_score") and not -1 <= request.least_score <= 1:
        raise BadQuery(f"least_score must be -1 to 1; {request.least_score} came")
    if len(request.payload.keys) > limits.MAX_VALUES:
        raise BadQuery(f"payload may name {limits.MAX_VALUES} keys; {len(request.payload.keys)} came")
    if request.rerank and request.group_by:
        raise BadQuery("rerank does not go with group_by: leave one of them out")


def _modifiers(request: pb.SearchRequest) -> list[Modifier]:
    """`words` and `modifiers`, within their bounds."""
    plain = [Modifier(request.words)] if request.words else []
    given = [Modifier(each.words, each.weight if each.HasField("weight") else 1.0) for each in request.modifiers]
    said = plain + given
    if len(said) > limits.MAX_MODIFIERS:
        raise BadQuery(f"a question may have {limits.MAX_MODIFIERS} modifiers, words counted; {len(said)} came")
    if (size := sum(len(each.words.encode()) for each in said)) > limits.MAX_WORDS_BYTES:
        raise BadQuery(f"words may have {limits.MAX_WORDS_BYTES} bytes of UTF-8; {size} came")
    for each in said:
        if not -limits.MAX_WEIGHT <= each.weight <= limits.MAX_WEIGHT:
            raise BadQuery(
                f"a modifier's weight is -{limits.MAX_WEIGHT:g} to {limits.MAX_WEIGHT:g}; {each.weight} came"
            )
    return said


def _hits(gallery: Gallery, question: Question, vector: NDArray[np.float32]) -> tuple[list[Scored], int]:
    """The page that was asked for, and how many of the best hits were sorted anew before it was cut."""
    asked = replace(question.search, vector=vector)
    if not question.rerank or asked.skip >= RERANK.depth:
        found = gallery.search(asked)
        if asked.group_by is not None:  # payload may have changed since the engine grouped
            found = [hit for hit in found if asked.group_by in hit.payload]
        return found, 0
    whole = replace(asked, skip=0, top=max(asked.skip + asked.top, RERANK.depth), with_vectors=True)
    found = gallery.search(whole)
    vectors = [hit.vector for hit in found if hit.vector is not None]
    if len(vectors) < 2:
        return found[asked.skip :], 0
    places, _ = rerank(vector, np.stack(vectors), np.array([hit.score for hit in found], np.float32))
    page = [found[place] for place in places[asked.skip : asked.skip + asked.top]]
    return page, min(len(found), RERANK.depth)


def version() -> str:
    """Version of Pocketlens; "0" where it runs from a source tree without installation."""
    try:
        return metadata.version("pocketlens")
    except metadata.PackageNotFoundError:
        return "0"


def _hit(hit: Scored, question: Question) -> pb.Hit:
    wanted, group_by = question.payload, question.search.group_by
    group = None if group_by is None else _value(hit.payload[group_by])
    made = pb.Hit(id=hit.id, score=hit.score, group=group)
    for key, value in hit.payload.items():
        if wanted is not None and key not in wanted:
            continue
        if field := _FIELD_OF.get(type(value)):
            setattr(made.payload[key], field, value)  # in place: three times faster than by a message for each
        else:
            made.payload[key].CopyFrom(_value(value))
    return made


_FIELD_OF: dict[type, str] = {str: "text", int: "integer", float: "number", bool: "flag"}


def _value(value: Value) -> pb.Value:
    match value:
        case list():
            return pb.Value(several=pb.Values(values=[_value(each) for each in value]))
        case dict():
            return pb.Value(place=pb.Place(latitude=value["lat"], longitude=value["lon"]))
        case bool():
            return pb.Value(flag=value)
        case int():
            return pb.Value(integer=value)
        case float():
            return pb.Value(number=value)
        case str():
            return pb.Value(text=value)
