"""Words to token ids, with the bundle's own tokenizer.json.

The only file that imports tokenizers. Guarantees that no text a user types becomes a special id;
sequences with their special ids are built by position in compose.py."""

from pathlib import Path
from typing import final

from pocketlens_wire.errors import BadBundle
from tokenizers import Tokenizer as _Tokenizer

PAD, BOS, EOS, UNKNOWN, SLOT = "<pad>", "<bos>", "<eos>", "<unk>", "<slot>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, SLOT)


@final
class Tokenizer:
    """The text side of the token space."""

    def __init__(self, path: Path) -> None:
        """Load tokenizer.json. Raises BadBundle if it cannot be read or lacks a special token."""
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BadBundle(f"{path}: not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Without this the library turns a typed "<slot>" into the slot's id.
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if missing := [name for name in SPECIAL if name not in vocabulary]:
            raise BadBundle(f"{path}: the vocabulary lacks {', '.join(missing)}")
        special = {name: vocabulary[name] for name in SPECIAL}
        if special[PAD] != 0:
            raise BadBundle(f"{path}: {PAD} must have id 0; it has {special[PAD]}")
        self.bos, self.eos, self.slot = special[BOS], special[EOS], special[SLOT]
        self._unknown = special[UNKNOWN]
        # A word-level vocabulary may still look "<slot>" up as a word: such an id becomes <unk>.
        self._reserved = frozenset(special.values()) - {self._unknown}

    def ids(self, text: str) -> list[int]:
        """Token ids of plain text; never a special id except <unk>."""
        return self._checked(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """For each token of `ids(text)`, its [start, end) in characters of `text`."""
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def unknown(self, text: str) -> list[str]:
        """The pieces of `text` the vocabulary does not know, each once, in order."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        pairs = zip(self._checked(encoded.ids), encoded.offsets, strict=True)
        return list(dict.fromkeys(text[start:end] for i, (start, end) in pairs if i == self._unknown))

    def _checked(self, ids: list[int]) -> list[int]:
        return [self._unknown if i in self._reserved else i for i in ids]
