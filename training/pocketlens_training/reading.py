"""From strings to a text tower's input rows, by position, exactly as the cloud builds them; and through the tower.

Owns the row layout in training. How words are cleaned is the service's own code: a student must learn on the rows that
the service will read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from accelerate import Accelerator
from pocketlens_cloud.wording import cleaned
from pocketlens_wire.manifest import Prompts, TextLayout
from tokenizers import Tokenizer
from torch import Tensor

from pocketlens_training.teachers.teacher import Teacher, TextModule

SLOT = "{sentence}"


@dataclass(frozen=True)
class Rows:
    """Input rows of a text tower. token_ids int64 (batch, length), the rest int64 (batch,)."""

    token_ids: Tensor
    sentence_start: Tensor
    sentence_length: Tensor
    end: Tensor

    def to(self, device: torch.device) -> Rows:
        return Rows(*(getattr(self, field.name).to(device) for field in fields(self)))

    def taken(self, which: Sequence[int]) -> Rows:
        """The rows `which`, in that order; one may be taken many times."""
        rows = torch.tensor(which)
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


class RowMaker:
    """Texts to rows, of one tokenizer, layout and context."""

    def __init__(self, tokenizer: Tokenizer, layout: TextLayout, context: int) -> None:
        self._tokenizer, self._layout, self.context = tokenizer, layout, context
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # a typed "<slot>" is words
        self._reserved = frozenset(layout.special)

    def rows(self, texts: Sequence[str], *, tokens: int = 0) -> Rows:
        """Rows of `texts`; where a text first holds "{sentence}", `tokens` slots stand in its place; without tokens it
        is words. A text longer than the context loses its end, never its sentence."""
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        if len(distinct) < len(texts):
            return self.rows([*distinct], tokens=tokens).taken([distinct[text] for text in texts])
        layout = self._layout
        parts = [text.partition(SLOT) if tokens else (text, "", "") for text in texts]
        flat = [part for before, _, after in parts for part in (before, after)]
        encoded = self._encoded(flat)
        built, starts, lengths = [], [], []
        for i, (_, slot, _) in enumerate(parts):
            slots = [layout.slot] * tokens if slot else []
            head = [*layout.begin, *encoded[2 * i]]
            room = self.context - len(layout.end)
            built.append([*(head + slots + encoded[2 * i + 1])[:room], *layout.end])
            starts.append(len(head))
            lengths.append(len(slots))
        ends = [len(ids) - 1 for ids in built]
        longest = self.context if layout.fixed_length else max(map(len, built))
        token_ids = torch.full((len(built), longest), layout.pad)
        for i, ids in enumerate(built):
            token_ids[i, : len(ids)] = torch.tensor(ids)
        return Rows(token_ids, torch.tensor(starts), torch.tensor(lengths), torch.tensor(ends))

    def lengths(self, texts: Sequence[str], *, tokens: int = 0) -> list[int]:
        """How many ids the rows of `texts` would have if none were cut."""
        around = len(self._layout.begin) + len(self._layout.end)
        parts = [text.partition(SLOT) if tokens else (text, "", "") for text in texts]
        encoded = self._encoded([part for before, _, after in parts for part in (before, after)])
        return [
            around + len(encoded[2 * i]) + len(encoded[2 * i + 1]) + (tokens if slot else 0)
            for i, (_, slot, _) in enumerate(parts)
        ]

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; equal ones, such as the parts of a prompt, are encoded once."""
        distinct = list(dict.fromkeys(texts))
        clean = [cleaned(text, self._layout.clean) for text in distinct]
        found = self._tokenizer.encode_batch(clean, add_special_tokens=False)
        ids = {text: self._checked(each.ids) for text, each in zip(distinct, found, strict=True)}
        return [ids[text] for text in texts]

    def unknown(self, text: str) -> bool:
        """Whether the vocabulary lacks a word of `text`."""
        ids = self._tokenizer.encode(cleaned(text, self._layout.clean), add_special_tokens=False).ids
        return self._layout.unknown in ids

    def _checked(self, ids: list[int]) -> list[int]:
        if self._reserved.isdisjoint(ids):
            return ids
        if self._layout.unknown is None:
            return [token for token in ids if token not in self._reserved]
        return [self._layout.unknown if token in self._reserved else token for token in ids]


class Reader:
    """A frozen text tower that reads texts with sentences in them, on one device. exact: in float32, for measuring."""

    def __init__(
        self, text: TextModule, maker: RowMaker, prompts: Prompts, where: Accelerator, *, exact: bool = False
    ) -> None:
        self.tower, self.maker, self.prompts, self.where = text, maker, prompts, where
        self._precision = nullcontext if exact else where.autocast

    def raw(self, texts: Sequence[str], sentence: Tensor | None = None) -> Tensor:
        """Raw text features float32 (batch, dim); `sentence` (batch, k, width) fills the texts' "{sentence}"."""
        rows = self.maker.rows(texts, tokens=0 if sentence is None else sentence.shape[1]).to(self.where.device)
        if sentence is None:
            sentence = torch.zeros(len(texts), 1, self.tower.words.embedding_dim, device=self.where.device)
        with self._precision():
            out = self.tower(rows.token_ids, sentence, rows.sentence_start, rows.sentence_length, rows.end)
        return out.float()

    def unit(self, texts: Sequence[str], sentence: Tensor | None = None) -> Tensor:
        """The same of length 1."""
        return torch.nn.functional.normalize(self.raw(texts, sentence), dim=1)

    def states(self, texts: Sequence[str], sentence: Tensor | None = None) -> dict[str, Tensor]:
        """Projected states (batch, length, dim) of every position, which are real, and where the tower pools."""
        rows = self.maker.rows(texts, tokens=0 if sentence is None else sentence.shape[1]).to(self.where.device)
        if sentence is None:
            sentence = torch.zeros(len(texts), 1, self.tower.words.embedding_dim, device=self.where.device)
        with self._precision():
            states = self.tower.projected(
                rows.token_ids, sentence, rows.sentence_start, rows.sentence_length, rows.end
            ).float()
        places = torch.arange(states.shape[1], device=states.device)[None]
        return {"states": states, "mask": places <= rows.end[:, None], "end": self.tower.pooled_at(rows.end)}

    @property
    def alone(self) -> str:
        """The prompt of a picture without words."""
        return self.prompts.picture

    def words(self, words: str) -> str:
        """The prompt of words without a picture."""
        return self.prompts.words.replace("{words}", words)

    def composed(self, words: str) -> str:
        """The prompt of a picture with words; "{sentence}" typed by a person is words."""
        if not words:
            return self.alone
        before, _, after = self.prompts.composed.partition("{words}")
        if SLOT not in before:  # a row's first one is the sentence
            words = words.replace(SLOT, "sentence")
        return before + words + after


def reader_of(teacher: Teacher, where: Accelerator, *, exact: bool = False) -> Reader:
    """The text tower of `teacher`, wherever it lies, as a Reader."""
    maker = RowMaker(teacher.tokenizer, teacher.layout, teacher.context)
    return Reader(teacher.text, maker, teacher.prompts, where, exact=exact)
