"""Words to token ids, with the bundle's own tokenizer.json.

The only file that imports tokenizers. Guarantees that no text a user types becomes a special id;
sequences with their special ids are built by position in compose.py."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Final, final

from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import TextLayout
from tokenizers import Tokenizer as _Tokenizer

REPEATED: Final = 8  # texts whose tokens are kept


@final
class Tokenizer:
    """The text side of the token space."""

    def __init__(self, path: Path, layout: TextLayout) -> None:
        """Load tokenizer.json. Raises BadBundle if it cannot be read or lacks an id that `layout` names."""
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BadBundle(f"{path}: not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Without this the library turns a typed "<slot>" into the slot's id.
        self._tokenizer.encode_special_tokens = True
        named = {*layout.begin, *layout.end, layout.pad, layout.slot, *layout.special}
        if layout.unknown is not None:
            named.add(layout.unknown)
        known = set(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if missing := sorted(named - known):
            raise BadBundle(f"{path}: the vocabulary lacks the ids {', '.join(map(str, missing))} of the manifest")
        # One text is asked for its ids, then for what is unknown in it.
        self._encoded = lru_cache(REPEATED)(partial(self._tokenizer.encode, add_special_tokens=False))
        self._unknown = layout.unknown
        # A word-level vocabulary may still look "<slot>" up as a word: such an id becomes the unknown one, or nothing.
        self._reserved = frozenset(layout.special)

    def ids(self, text: str) -> list[int]:
        """Token ids of cleaned text; never a special id except the unknown one."""
        return self._checked(self._encoded(text).ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """For each token of `ids(text)`, its [start, end) in characters of `text`."""
        encoded = self._encoded(text)
        return [span for token, span in zip(encoded.ids, encoded.offsets, strict=True) if self._stays(token)]

    def unknown(self, text: str) -> list[str]:
        """The pieces of `text` the vocabulary does not know, each once, in order."""
        encoded = self._encoded(text)
        strange = {self._unknown, *self._reserved}
        pairs = zip(encoded.ids, encoded.offsets, strict=True)
        return list(dict.fromkeys(text[start:end] for token, (start, end) in pairs if token in strange))

    def _checked(self, ids: list[int]) -> list[int]:
        if self._unknown is None:
            return [token for token in ids if token not in self._reserved]
        return [self._unknown if token in self._reserved else token for token in ids]

    def _stays(self, token: int) -> bool:
        return self._unknown is not None or token not in self._reserved
