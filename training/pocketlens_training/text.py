"""From strings to the text tower's input rows, by position, exactly as the cloud builds them.

Owns the sample tokenizer and the row layout [bos] before [slots] after [eos]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pocketlens_wire.manifest import TextLayout
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from pocketlens_training.recipe import PROMPTS

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<slot>")
PAD, BOS, EOS, UNK, SLOT = range(len(SPECIAL))
LAYOUT = TextLayout(
    begin=[BOS], end=[EOS], pad=PAD, slot=SLOT, special=[PAD, BOS, EOS, SLOT], unknown=UNK, fixed_length=False,
    clean=["plain", "spaces"],
)  # fmt: skip


def build_tokenizer(vocabulary: Sequence[str]) -> Tokenizer:
    """A word-level tokenizer over a closed vocabulary; special ids cannot be typed."""
    splitter = pre_tokenizers.Whitespace()
    pieces = {piece for word in (*vocabulary, ",", "'", "-") for piece, _ in splitter.pre_tokenize_str(word)}
    words = [*SPECIAL, *sorted(pieces)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = splitter
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


@dataclass(frozen=True)
class Rows:
    """Input rows of the text tower. token_ids int64 (batch, length), the rest int64 (batch,)."""

    token_ids: Tensor
    sentence_start: Tensor
    sentence_length: Tensor
    end: Tensor

    def to(self, device: torch.device) -> Rows:
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def rows(tokenizer: Tokenizer, texts: Sequence[str], *, context: int, tokens: int = 0) -> Rows:
    """Rows of `texts`; where a text holds "{sentence}", `tokens` slots stand in its place.

    Raises ValueError when a row is longer than `context` ids."""
    before_after = [text.partition("{sentence}") for text in texts]
    encoded = tokenizer.encode_batch(
        [part for before, _, after in before_after for part in (before, after)], add_special_tokens=False
    )
    built, starts, lengths, ends = [], [], [], []
    for i, (_, slot, _) in enumerate(before_after):
        before, after = encoded[2 * i].ids, encoded[2 * i + 1].ids
        slots = [SLOT] * tokens if slot else []
        ids = [BOS, *before, *slots, *after, EOS]
        if len(ids) > context:
            raise ValueError(f"text has {len(ids)} token ids, the tower takes {context}: {texts[i]!r}")
        built.append(ids)
        starts.append(1 + len(before))
        lengths.append(len(slots))
        ends.append(len(ids) - 1)
    token_ids = torch.full((len(built), max(map(len, built))), PAD)
    for i, ids in enumerate(built):
        token_ids[i, : len(ids)] = torch.tensor(ids)
    return Rows(token_ids, torch.tensor(starts), torch.tensor(lengths), torch.tensor(ends))


def composed_prompt(words: str, *, picture: bool) -> str:
    """The text of a query, with "{sentence}" where the picture's tokens go."""
    if not picture:
        return PROMPTS.words.replace("{words}", words)
    if not words:
        return PROMPTS.picture
    # "{sentence}" typed by a user is words: only the template's own is a slot.
    return PROMPTS.composed.replace("{words}", words.replace("{sentence}", "sentence"))
