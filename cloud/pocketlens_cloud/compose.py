"""One query vector from sentence tokens and words.

Owns the prompts' layout, the cutting and cleaning of words, and what a missing picture or missing
words mean. Called by service.py and by benchmarks; knows nothing of networks or galleries."""

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A query vector and what happened on its way."""

    vector: NDArray[np.float32]  # (dim,), unit length
    vector_name: str  # gallery vector to search: "original" or "union"
    notes: list[str]  # sentences for the asker
    words_used: str  # the words that reached the tower if they had to be cut, else ""
    times: dict[str, float]  # "text_tower_ms", "heads_ms"


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

    def compose(self, sentence: Sentence | None, words: str, mode: Mode) -> Composed:
        """The query vector of one question: sentence (k, width) or None, words or "".

        Raises BadQuery when both are missing or the mode is not in the bundle."""
        self._check_mode(mode)
        started = time.perf_counter()
        used, notes, was_cut = self._words(sentence, words)
        features = self._features([(sentence, used)], with_parts=mode == "tuned")
        towered = time.perf_counter()
        (vector,) = self.query(features, mode)
        if not np.isfinite(vector).all():
            raise ServerFault("the text tower gave no finite vector for this query")
        return Composed(
            vector=vector,
            vector_name=self.vector_of(mode),
            notes=notes,
            words_used=used if was_cut else "",
            times={
                "text_tower_ms": (towered - started) * 1e3,
                "heads_ms": (time.perf_counter() - towered) * 1e3,
            },
        )

    def compose_batch(self, asks: Sequence[Ask], mode: Mode) -> NDArray[np.float32]:
        """Query vectors (len(asks), dim), row for row what `compose` gives. For benchmarks."""
        self._check_mode(mode)
        cut = [(sentence, self._words(sentence, words)[0]) for sentence, words in asks]
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

    def _words(self, sentence: Sentence | None, words: str) -> tuple[str, list[str], bool]:
        """Words cleaned and cut to what the tower reads, notes about it, and whether they were cut."""
        whole = self.clean(words)
        if not whole and sentence is None:
            raise BadQuery("the query is empty: send a picture's sentence tokens, words, or both")
        used = self._layout.cut(whole, k=0 if sentence is None else len(sentence))
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
        return used, notes, used != whole

    def _features(self, asks: Sequence[Ask], *, with_parts: bool) -> Features:
        """Run each needed row once. Without parts only `composed` is meant to be used."""
        rows: list[Row] = []

        def place(row: Row) -> int:
            rows.append(row)
            return len(rows) - 1

        composed, picture, words = [], [], []  # index into `rows`, -1 for the feature of ""
        for sentence, text in asks:
            both = sentence is not None and text != ""
            p = place(self._layout.picture(sentence)) if sentence is not None and (with_parts or not both) else -1
            w = place(self._layout.words(text)) if text and (with_parts or not both) else -1
            c = place(self._layout.composed(sentence, text)) if sentence is not None and both else max(p, w)
            composed.append(c)
            picture.append(p)
            words.append(w)
        table = np.concatenate([self._tower.run(rows), self._empty[None]]) if rows else self._empty[None]
        return Features(table[composed], table[picture], table[words])


@final
class _Layout:
    """The prompts as rows of token ids. The sentence is placed by position, never by text."""

    def __init__(self, tokenizer: Tokenizer, manifest: CloudManifest) -> None:
        self._tokenizer = tokenizer
        self._prompts = manifest.prompts
        self._text = manifest.text
        self._context = manifest.context

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

    def _ids(self, text: str) -> list[int]:
        """Cleaned with the prompt around the words, as the tower's own library and training do: a tower that never saw
        punctuation must not see the prompt's."""
        return self._tokenizer.ids(cleaned(text, self._text.clean))

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
