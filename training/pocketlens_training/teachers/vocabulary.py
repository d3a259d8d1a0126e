"""The tokenizer of a teacher of one's own: a word a token, as its captions have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pocketlens_wire.manifest import TextLayout
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<slot>")
PAD, BOS, EOS, UNK, SLOT = range(len(SPECIAL))
LAYOUT = TextLayout(
    begin=[BOS], end=[EOS], pad=PAD, slot=SLOT, special=[PAD, BOS, EOS, SLOT], unknown=UNK, fixed_length=False,
    clean=["plain", "spaces"],
)  # fmt: skip
ALWAYS = ("a", "photo", "of", ",", "'", "-")
"""What prompts are made of."""


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, cut and lowered as the tokenizer will."""
    tokenizer = word_tokenizer(())
    assert tokenizer.normalizer is not None and tokenizer.pre_tokenizer is not None
    normal, cut = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in cut(normal(text)))
    return counts


def build_vocabulary(counts: Counter[str], *, at_least: int, at_most: int) -> list[str]:
    """The words that get a token of their own, the most frequent first: those seen `at_least` times, `at_most` of them;
    and those of ALWAYS."""
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    frequent = [word for word in by_frequency[:at_most] if counts[word] >= at_least]
    return list(dict.fromkeys([*frequent, *ALWAYS]))


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A word-level tokenizer over a closed vocabulary; special ids cannot be typed."""
    listed = [*SPECIAL, *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
