"""One query vector from sentence tokens and words.

Owns the prompts' layout, the cutting and cleaning of words, and what a missing picture or missing
words mean. Called by service.py and by benchmarks; knows nothing of networks or galleries."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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


EMPTY = -1  # stands for the feature of "" where a row's index is meant


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the text tower must read for one question, and what each row is for.

    composed, picture, words: index into `rows`, or EMPTY."""

    rows: tuple[Row, ...]
    composed: int
    picture: int
    words: int
    mode: Mode
    notes: tuple[str, ...] = ()  # sentences for the asker
    words_used: str = ""  # the words that are in the rows if they had to be cut


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

    def compose(self, sentence: Sentence | None, words: str, mode: Mode) -> Composed:
        """The query vector of one question: sentence (k, width) or None, words or "".

        Raises BadQuery when both are missing or the mode is not in the bundle."""
        plan = self.plan(sentence, words, mode)
        return self.finish(plan, self.read(plan.rows))

    def plan(self, sentence: Sentence | None, words: str, mode: Mode) -> Plan:
        """The rows of one question, so that several questions' rows can be read together. Runs no model.

        Raises BadQuery when both are missing or the mode is not in the bundle."""
        self._check_mode(mode)
        used, notes, was_cut = self._words(sentence, words)
        plan = self._placed(sentence, used, mode, with_parts=mode == "tuned")
        return replace(plan, notes=tuple(notes), words_used=used if was_cut else "")

    def read(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The text tower's unit features (rows, dim)."""
        return self._tower.run(rows)

    def finish(self, plan: Plan, texts: NDArray[np.float32]) -> Composed:
        """The query vector of a plan whose rows were read as `texts` (rows, dim).

        Raises ServerFault for a vector that is not finite."""
        (vector,) = self.query(self._picked([plan], [0], texts), plan.mode)
        if not np.isfinite(vector).all():
            raise ServerFault("the text tower gave no finite vector for this query")
        return Composed(
            vector=vector, vector_name=self.vector_of(plan.mode), notes=plan.notes, words_used=plan.words_used
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
        plans = [self._placed(sentence, words, "zero-shot", with_parts=with_parts) for sentence, words in asks]
        rows = [row for plan in plans for row in plan.rows]
        starts = np.cumsum([0, *(len(plan.rows) for plan in plans)]).tolist()
        return self._picked(plans, starts, self.read(rows))

    def _placed(self, sentence: Sentence | None, words: str, mode: Mode, *, with_parts: bool) -> Plan:
        """Each needed row once; words are taken as they are."""
        rows: list[Row] = []

        def place(row: Row) -> int:
            rows.append(row)
            return len(rows) - 1

        both = sentence is not None and words != ""
        picture = place(self._layout.picture(sentence)) if sentence is not None and (with_parts or not both) else EMPTY
        alone = place(self._layout.words(words)) if words and (with_parts or not both) else EMPTY
        composed = place(self._layout.composed(sentence, words)) if sentence is not None and both else EMPTY
        return Plan(
            rows=tuple(rows),
            composed=composed if both else max(picture, alone),
            picture=picture,
            words=alone,
            mode=mode,
        )

    def _picked(self, plans: Sequence[Plan], starts: Sequence[int], texts: NDArray[np.float32]) -> Features:
        """The three features of each plan, whose rows begin at `starts` in `texts`."""
        table = np.concatenate([texts, self._empty[None]])

        def at(index: int, start: int) -> int:
            return len(texts) if index == EMPTY else start + index

        pairs = list(zip(plans, starts, strict=False))
        return Features(
            table[[at(plan.composed, start) for plan, start in pairs]],
            table[[at(plan.picture, start) for plan, start in pairs]],
            table[[at(plan.words, start) for plan, start in pairs]],
        )


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
