"""Words as the text tower's own library would clean them before it cuts them into tokens.

Owns the steps that a manifest's `text.clean` may name, each as that library does it: a tokenizer.json cannot say them.
Called by compose.py."""

import html
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import ftfy

PUNCTUATION = str.maketrans("", "", string.punctuation)


def _plain(words: str) -> str:
    """NFC, control characters gone."""
    normal = unicodedata.normalize("NFC", words)
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in normal)


STEPS: Mapping[str, Callable[[str], str]] = {
    "plain": _plain,
    "ftfy": ftfy.fix_text,  # wrongly decoded text; open_clip begins with it
    "html": lambda words: html.unescape(html.unescape(words)),  # open_clip: twice
    "punctuation": lambda words: words.replace("_", " ").translate(PUNCTUATION),  # SigLIP: ASCII punctuation goes
    "lower": str.lower,
    "spaces": lambda words: " ".join(words.split()),
}


def cleaned(words: str, steps: Sequence[str]) -> str:
    """`words` after each of `steps`, which are keys of STEPS."""
    for step in steps:
        words = STEPS[step](words)
    return words
