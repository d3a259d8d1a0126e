"""Which words of a text tower a sentence's tokens are near, written as people write them.

Vocabularies mark a word's beginning, inside or end in four ways; which one is read off the vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from pocketlens_training.teachers.teacher import Teacher

NEAREST = 5  # words of a token
UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")  # rows that BERT and Gemma keep free: never trained
MARKS = ("</w>", "▁", "##", "Ġ")  # of a word's end (CLIP), its beginning (sentence pieces), its inside (BERT), a space


@dataclass(frozen=True)
class Word:
    """A word of the text tower and its cosine to a token."""

    text: str
    id: int
    cosine: float


class Vocabulary:
    """The words of a text tower, without special ids and those that no text becomes."""

    def __init__(self, teacher: Teacher) -> None:
        tokenizer = teacher.tokenizer
        self._weight = teacher.text.words.weight
        marked = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        left_out = {*teacher.layout.special, teacher.layout.unknown, *marked}
        self._names = [tokenizer.id_to_token(i) for i in range(len(self._weight))]
        bad = [
            name is None or i in left_out or UNUSED.fullmatch(name) is not None for i, name in enumerate(self._names)
        ]
        self._left_out = torch.tensor(bad, device=self._weight.device)
        self._norm = self._weight.float().norm(dim=1).clamp(min=1e-9)
        self._mark = mark_of(tokenizer)

    def whole_words(self) -> list[int]:
        """Ids of whole words, in the vocabulary's order, which is by frequency in all kinds of it. Single letters are
        left out where a vocabulary has pieces of words: every letter is one."""
        shortest = 2 if self._mark else 1
        free = (i for i, bad in enumerate(self._left_out.tolist()) if not bad)
        said = ((i, readable(self._names[i] or "", self._mark)) for i in free)
        return [i for i, text in said if len(text) >= shortest and text[0].isalnum() and "…" not in text]

    @torch.no_grad()
    def nearest(self, sentence: Tensor, count: int = NEAREST) -> list[list[Word]]:
        """Of each token (k, width) the words of highest cosine, best first."""
        tokens = F.normalize(sentence.to(self._weight.device, torch.float32), dim=1)
        cosines = (tokens @ self._weight.float().T / self._norm).masked_fill(self._left_out, -torch.inf)
        best = cosines.topk(min(count, int((~self._left_out).sum())), dim=1)
        return [
            [Word(readable(self._names[i] or "", self._mark), i, cosine) for i, cosine in zip(ids, values, strict=True)]
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def mark_of(tokenizer: Tokenizer) -> str:
    """Which of MARKS a vocabulary uses to tell a word from a part of one; "" where all are words."""
    if isinstance(tokenizer.model, models.WordLevel):
        return ""
    names = list(tokenizer.get_vocab())
    counts = {mark: sum(mark in name for name in names) for mark in MARKS}
    best = max(MARKS, key=counts.__getitem__)
    return best if counts[best] * 100 >= len(names) else ""


def readable(name: str, mark: str) -> str:
    """A piece of a vocabulary as people write it; "…" stands where the rest of its word is."""
    if mark == "</w>":
        text, before, after = _spelled(name.removesuffix(mark)), "", "" if name.endswith(mark) else "…"
    elif mark == "##":
        text, after = name.removeprefix(mark), ""
        before = "…" if name.startswith(mark) else ""
    elif mark:
        text, after = (_spelled(name) if mark == "Ġ" else name.replace("▁", " ")), ""
        before = "" if name.startswith(mark) else "…"
    else:
        text, before, after = name, "", ""
    text = " ".join(text.split())
    if not text:
        return "(space)"
    return f"{before}{text}{after}" if any(letter.isalnum() for letter in text) else text


def _spelled(letters: str) -> str:
    """Bytes written as letters (GPT-2's way, which CLIP took over) as the text they are, if they are a whole one."""
    text = decoders.ByteLevel().decode([letters])
    return letters if "\ufffd" in text else text
