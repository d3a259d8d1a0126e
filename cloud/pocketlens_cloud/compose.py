"""One query vector from sentence tokens and words.

Owns the prompts' layout, the cutting and cleaning of words, what a missing picture or missing words mean, and the
arithmetic of words that have weights. Called by service.py and by benchmarks; knows no network and no gallery."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadQuery, ServerFault
from pocketlens_wire.manifest import CloudManifest

from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.gallery.payload import clip
from pocketlens_cloud.runtime import Graph
from pocketlens_cloud.tokenizer import Tokenizer
from pocketlens_cloud.towers import Row, TextTower
from pocketlens_cloud.wording import cleaned

Mode = Literal["zero-shot", "tuned"]
VECTOR_OF: dict[Mode, str] = {
    "zero-shot": "original",
    "tuned": "union",
}  # gallery vector each mode is searched in

MAX_UNKNOWN_NAMED = 5  # unknown words spelled out in a note

Sentence = NDArray[np.float32]  # (k, width)
Ask = tuple[Sentence | None, str]

REPEATED = 64  # texts whose ids are remembered: the prompts' own, and those of the questions being checked
EMPTY = -1  # stands for the feature of "" where a row's index is meant
JOINER = ", "  # between the words of several modifiers; of ", ", " and " and " " none is better (docs/converse.md)
SHORTEST = 1e-3  # length below which a sum of unit vectors points nowhere


@dataclass(frozen=True)
class Modifier:
    """Words and how much of them, -2 to 2; below 0: not this."""

    words: str
    weight: float = 1.0


Words = str | Sequence[Modifier]


@dataclass(frozen=True)
class Part:
    """One text's share in a query. composed, picture, words: index of a row, or EMPTY."""

    composed: int
    picture: int
    words: int
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the text tower must read for one question, and what each row is for.

    parts: the query is their weighted sum, at unit length."""

    rows: tuple[Row, ...]
    parts: tuple[Part, ...]
    mode: Mode
    notes: tuple[str, ...] = ()  # sentences for the asker
    words_used: str = ""  # the joined words that are in the rows if they had to be cut


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A query vector and what happened on its way."""

    vector: NDArray[np.float32]  # (dim,), unit length
    vector_name: str  # gallery vector to search: "original" or "union"
    notes: tuple[str, ...]  # sentences for the asker
    words_used: str  # the words that reached the tower if they had to be cut, else ""


@dataclass(frozen=True)
class Features:
    """The three text features of a batch of queries, each float32 (batch, dim) with unit rows."""

    composed: NDArray[np.float32]
    picture: NDArray[np.float32]  # without a picture: the feature of ""
    words: NDArray[np.float32]  # without words: the feature of ""


@final
class Composer:
    """Text tower, query head and prompts of one bundle."""

    def __init__(
        self, manifest: CloudManifest, tokenizer: Tokenizer, text_tower: TextTower, query_head: Graph | None
    ) -> None:
        self.manifest = manifest
        self._tokenizer = tokenizer
        self._tower = text_tower
        self._query_head = query_head
        self._layout = _Layout(tokenizer, manifest)
        (self._empty,) = text_tower.run([self._layout.plain("")])  # also warms the tower up

    @classmethod
    def load(cls, bundle: Path, *, threads: int | None = None, precision: str = "fp32") -> "Composer":
        """Load the cloud half of `bundle` (root or half); graphs in parallel. `threads`: CPU threads per run;
        `precision`: of the text tower, a key of the manifest's `text_tower`.

        Raises BadBundle."""
        folder, manifest = open_cloud_half(bundle)
        with ThreadPoolExecutor(3) as pool:
            tokenizer = pool.submit(Tokenizer, folder / manifest.tokenizer.file, manifest.text)
            tower = pool.submit(TextTower, folder, manifest, threads=threads, precision=precision)
            head = pool.submit(_load_query_head, folder, manifest, threads)
            return cls(manifest, tokenizer.result(), tower.result(), head.result())

    def with_tower(self, tower: TextTower) -> "Composer":
        """The same bundle with another form of its text tower."""
        return Composer(self.manifest, self._tokenizer, tower, self._query_head)

    @property
    def modes(self) -> list[Mode]:
        """Modes this bundle can compose for."""
        return ["zero-shot", "tuned"] if self._query_head else ["zero-shot"]

    def vector_of(self, mode: Mode) -> str:
        """The gallery vector that `mode` searches: a query head may have been trained against pictures as they are."""
        return VECTOR_OF[mode] if VECTOR_OF[mode] in self.manifest.targets else VECTOR_OF["zero-shot"]

    @property
    def provider(self) -> str:
        """Execution provider of the text tower."""
        return self._tower.provider

    @property
    def packs(self) -> bool:
        """Whether the text tower reads no padding."""
        return self._tower.packs

    def compose(self, sentence: Sentence | None, words: Words, mode: Mode) -> Composed:
        """The query vector of one question: sentence (k, width) or None; words, "" or modifiers.

        Raises BadQuery when both are missing, the mode is not in the bundle, or modifiers cancel each other out."""
        plan = self.plan(sentence, words, mode)
        return self.finish(plan, self.read(plan.rows))

    def plan(self, sentence: Sentence | None, words: Words, mode: Mode) -> Plan:
        """The rows of one question, so that several questions' rows can be read together. Runs no model.

        Raises BadQuery when there is nothing to look for or the mode is not in the bundle."""
        self._check_mode(mode)
        k = 0 if sentence is None else len(sentence)
        joined, others = self._joined([Modifier(words)] if isinstance(words, str) else words)
        if sentence is None and not joined and not any(other.weight > 0 for other in others):
            raise BadQuery("the query is empty: send a picture's sentence tokens, words, or both")
        used, notes = self._cut(joined, k)
        cut = [(Modifier(text, other.weight), more) for other in others for text, more in (self._cut(other.words, k),)]
        notes += [note for _, more in cut for note in more]
        rows = _Rows(self._layout, sentence, with_parts=mode == "tuned")
        shares = _shares(used, [modifier for modifier, _ in cut], with_picture=sentence is not None)
        parts = [rows.part(text, weight, alone=alone) for (alone, text), weight in shares.items()]
        return Plan(
            rows=tuple(rows.placed),
            parts=tuple(parts),
            mode=mode,
            notes=tuple(dict.fromkeys(notes)),
            words_used=used if used != joined else "",
        )

    def read(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The text tower's unit features (rows, dim)."""
        return self._tower.run(rows)

    def finish(self, plan: Plan, texts: NDArray[np.float32]) -> Composed:
        """The query vector of a plan whose rows were read as `texts` (rows, dim).

        Raises ServerFault for a vector that is not finite, BadQuery if modifiers cancel each other out."""
        vectors = self.query(self._picked(plan.parts, texts), plan.mode)
        if not np.isfinite(vectors).all():
            raise ServerFault("the text tower gave no finite vector for this query")
        vector = vectors[0]
        if len(vectors) > 1:
            vector = np.array([part.weight for part in plan.parts], np.float32) @ vectors
            if (length := float(np.linalg.norm(vector))) < SHORTEST:
                raise BadQuery("the modifiers cancel each other out: nothing is left to look for")
            vector /= length
        return Composed(
            vector=vector, vector_name=self.vector_of(plan.mode), notes=plan.notes, words_used=plan.words_used
        )

    def compose_batch(self, asks: Sequence[Ask], mode: Mode) -> NDArray[np.float32]:
        """Query vectors (len(asks), dim), row for row what `compose` gives. For benchmarks."""
        self._check_mode(mode)
        cut = [
            (sentence, self._cut(self.clean(words), 0 if sentence is None else len(sentence))[0])
            for sentence, words in asks
        ]
        return self.query(self._features(cut, with_parts=mode == "tuned"), mode)

    def features(self, asks: Sequence[Ask]) -> Features:
        """All three text features of each (sentence, words); words are taken as they are."""
        return self._features(asks, with_parts=True)

    def query(self, features: Features, mode: Mode) -> NDArray[np.float32]:
        """Unit query vectors (batch, dim): the composed feature, or the query head's output when tuned."""
        if mode == "zero-shot" or self._query_head is None:
            return features.composed
        feeds = {"composed": features.composed, "picture": features.picture, "words": features.words}
        return self._query_head.run(["query"], feeds)[0]

    def clean(self, words: str) -> str:
        """Words as the bundle's text tower is meant to see them: by the manifest's steps."""
        return cleaned(words, self.manifest.text.clean).strip()

    def _check_mode(self, mode: Mode) -> None:
        if mode not in self.modes:
            raise BadQuery(f"mode {mode} is not in bundle {self.manifest.name}; it has {', '.join(self.modes)}")

    def _joined(self, modifiers: Sequence[Modifier]) -> tuple[str, list[Modifier]]:
        """The words of weight 1 as one text, and the other modifiers, all cleaned; what says nothing is left out."""
        said = [Modifier(clean, each.weight) for each in modifiers if (clean := self.clean(each.words)) and each.weight]
        joined = JOINER.join(each.words for each in said if each.weight == 1)
        return joined, [each for each in said if each.weight != 1]

    def _cut(self, whole: str, k: int) -> tuple[str, list[str]]:
        """Cleaned words cut to what the tower reads beside `k` tokens, and notes about it."""
        used = self._layout.cut(whole, k=k)
        notes = []
        if used != whole:
            notes.append(
                f"The words were longer than the text tower reads: "
                f"the first {len(used.split())} of {len(whole.split())} words were used."
            )
        if unknown := self._tokenizer.unknown(used):
            more = len(unknown) - MAX_UNKNOWN_NAMED
            named = ", ".join(clip(word) for word in unknown[:MAX_UNKNOWN_NAMED])
            notes.append(f"The text tower does not know: {named}{f' and {more} more' if more > 0 else ''}.")
        return used, notes

    def _features(self, asks: Sequence[Ask], *, with_parts: bool) -> Features:
        """Run each needed row once. Without parts only `composed` is meant to be used."""
        rows: list[Row] = []
        parts: list[Part] = []
        for sentence, words in asks:
            own = _Rows(self._layout, sentence, with_parts=with_parts, start=len(rows))
            parts.append(own.part(words, alone=sentence is None))
            rows += own.placed
        return self._picked(parts, self.read(rows))

    def _picked(self, parts: Sequence[Part], texts: NDArray[np.float32]) -> Features:
        """The three features of each part, whose rows were read as `texts`."""
        table = np.concatenate([texts, self._empty[None]])  # its last row is where EMPTY points
        return Features(
            table[[part.composed for part in parts]],
            table[[part.picture for part in parts]],
            table[[part.words for part in parts]],
        )


def _shares(joined: str, others: Sequence[Modifier], *, with_picture: bool) -> dict[tuple[bool, str], float]:
    """By (without the picture?, text): the weight of that text's vector in the query.

    The query is the vector of picture and joined words, plus, for each other modifier, its weight times what its words
    add: the difference of the vectors with and without them, along which PDV too moves a query. More of something is
    measured beside the picture. Less of something is measured on the words alone: beside a picture that shows it
    already, words add next to nothing, and that is when people say "not" (docs/converse.md has the figures)."""
    alone = not with_picture
    shares = {(alone, joined): 1.0}
    for other in others:
        without = alone or other.weight < 0
        for text, weight in ((other.words, other.weight), ("", -other.weight)):
            shares[without, text] = shares.get((without, text), 0.0) + weight
    return {key: weight for key, weight in shares.items() if weight}


@final
class _Rows:
    """The rows of one question, each placed once. start: index of the first of them."""

    def __init__(self, layout: "_Layout", sentence: Sentence | None, *, with_parts: bool, start: int = 0) -> None:
        self._layout, self._sentence, self._with_parts = layout, sentence, with_parts
        self._start = start
        self._at: dict[tuple[str, str], int] = {}
        self.placed: list[Row] = []

    def part(self, text: str, weight: float = 1.0, *, alone: bool) -> Part:
        """The rows for `text`, taken as it is, beside the picture or alone. Without parts only `composed` is right."""
        pictured = not alone
        both = pictured and text != ""
        picture = self._place("picture", "") if pictured and (self._with_parts or not both) else EMPTY
        words = self._place("words", text) if text and (self._with_parts or not both) else EMPTY
        composed = self._place("composed", text) if both else max(picture, words)
        return Part(composed, picture, words, weight)

    def _place(self, kind: str, text: str) -> int:
        if (kind, text) not in self._at:
            self._at[kind, text] = self._start + len(self.placed)
            self.placed.append(self._row(kind, text))
        return self._at[kind, text]

    def _row(self, kind: str, text: str) -> Row:
        if kind == "words" or self._sentence is None:
            return self._layout.words(text)
        return (
            self._layout.picture(self._sentence) if kind == "picture" else self._layout.composed(self._sentence, text)
        )


@final
class _Layout:
    """The prompts as rows of token ids. The sentence is placed by position, never by text."""

    def __init__(self, tokenizer: Tokenizer, manifest: CloudManifest) -> None:
        self._tokenizer = tokenizer
        self._prompts = manifest.prompts
        self._text = manifest.text
        self._context = manifest.context
        self._ids = lru_cache(REPEATED)(self._ids_of)  # one question's words are cut to size, then placed

    def plain(self, text: str) -> Row:
        """The text between `begin` and `end`."""
        return Row([*self._text.begin, *self._ids(text), *self._text.end])

    def words(self, words: str) -> Row:
        return self.plain(_fill(self._prompts.words, words))

    def picture(self, sentence: Sentence) -> Row:
        return self._around(self._prompts.picture, sentence, "")

    def composed(self, sentence: Sentence, words: str) -> Row:
        return self._around(self._prompts.composed, sentence, words)

    def cut(self, words: str, *, k: int) -> str:
        """The longest beginning of `words` whose row fits the context, ending at a word.

        A first word that alone is too long (or a script without spaces) is cut between tokens."""
        while (over := self._overflow(words, k)) > 0:
            spans = self._tokenizer.spans(words)
            keep = len(spans) - over
            if keep <= 0:
                return ""
            end = spans[keep][0]  # start of the first token that has no room
            head = words[:end]
            if not words[end].isspace() and not head.endswith(" ") and re.search(r"\s", head):
                head = head[: head.rindex(" ")]
            words = head.rstrip()
        return words

    def _overflow(self, words: str, k: int) -> int:
        """Tokens by which the longest row holding `words` exceeds the context."""
        around = len(self._text.begin) + len(self._text.end)
        longest = len(self._ids(_fill(self._prompts.words, words))) + around
        if k:
            before, after = self._prompts.composed.split("{sentence}")
            ids = len(self._ids(_fill(before, words))) + len(self._ids(_fill(after, words)))
            longest = max(longest, ids + k + around)
        return longest - self._context

    def _ids_of(self, text: str) -> tuple[int, ...]:
        """Cleaned with the prompt around the words, as the tower's own library and training do: a tower that never saw
        punctuation must not see the prompt's."""
        return tuple(self._tokenizer.ids(cleaned(text, self._text.clean)))

    def _around(self, prompt: str, sentence: Sentence, words: str) -> Row:
        before, after = (self._ids(_fill(part, words)) for part in prompt.split("{sentence}"))
        slots = [self._text.slot] * len(sentence)
        head = [*self._text.begin, *before]
        return Row([*head, *slots, *after, *self._text.end], sentence, start=len(head))


def _fill(prompt: str, words: str) -> str:
    """`prompt` with its {words} replaced once; braces inside `words` stay what they are."""
    before, mark, after = prompt.partition("{words}")
    return before + words + after if mark else prompt


def _load_query_head(folder: Path, manifest: CloudManifest, threads: int | None) -> Graph | None:
    if manifest.query_head is None:
        return None
    return Graph(folder / manifest.query_head.file, threads=threads).require(
        inputs={"composed", "picture", "words"}, outputs={"query"}
    )
