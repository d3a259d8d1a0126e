"""A model's own tokenizer as a tokenizer.json and a text layout, so that the cloud needs neither the model's library
nor its Python.

Two kinds exist: CLIP's byte pairs, which open_clip implements itself, and whatever Hugging Face ships as a
tokenizer.json (SigLIP's sentence pieces, BERT's word pieces)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pocketlens_wire.manifest import TextLayout
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from pocketlens_training.teachers.teacher import CannotTeach

# The pieces CLIP cuts a text into before byte pairs; matched on text that is already lower case.
CLIP_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLEANED = {  # open_clip's names for what it does before tokenizing -> a manifest's steps
    "lower": ["ftfy", "html", "spaces", "lower"],
    "whitespace": ["ftfy", "html", "spaces"],
    "canonicalize": ["ftfy", "html", "punctuation", "lower", "spaces"],
}
PROBE = "a"


def byte_pairs(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], special: Sequence[str]) -> Tokenizer:
    """CLIP's tokenizer (Radford et al. 2021) without its cleaning, which is a manifest's `clean`."""
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=list(merges), end_of_word_suffix="</w>", continuing_subword_prefix="")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def clip_layout(start: int, end: int, *, clean: str, fixed_length: bool) -> TextLayout:
    """CLIP's rows. Padding is id 0, which is also the word "!": towers that see it get rows of full length."""
    return TextLayout(
        begin=[start], end=[end], pad=0, slot=0, special=[start, end], unknown=None, fixed_length=fixed_length,
        clean=CLEANED[clean],
    )  # fmt: skip


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json. Raises CannotTeach when the library cannot read it."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CannotTeach(f"{path}: not a tokenizer.json ({error})") from error


def probed_layout(tokenizer: Tokenizer, *, pad: int, clean: Sequence[str], fixed_length: bool) -> TextLayout:
    """The layout that `tokenizer` itself makes: what it puts before and after a text.

    Raises CannotTeach when it puts something inside it."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    bare = tokenizer.encode(PROBE, add_special_tokens=False).ids
    whole = tokenizer.encode(PROBE).ids
    places = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
    if not bare or not places:
        raise CannotTeach(f"the tokenizer writes {PROBE!r} as {bare}, but as {whole} between its special ids")
    begin, end = whole[: places[0]], whole[places[0] + len(bare) :]
    marked = [token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special]
    return TextLayout(
        begin=begin, end=end, pad=pad, slot=pad, special=sorted({*marked, *begin, *end, pad}),
        unknown=_unknown(tokenizer), fixed_length=fixed_length, clean=list(clean),
    )  # fmt: skip


def _unknown(tokenizer: Tokenizer) -> int | None:
    """The id that stands for what the vocabulary does not know."""
    model = json.loads(tokenizer.to_str())["model"]
    if (place := model.get("unk_id")) is not None:
        return int(place)
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None
