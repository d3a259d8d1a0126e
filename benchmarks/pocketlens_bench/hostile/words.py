"""Words as weapons: what may be typed, and what only a program would send."""

import math
from collections.abc import Callable

from pocketlens_wire.limits import MAX_WORDS_BYTES
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.hostile.case import ANSWERED, REFUSED, TOO_LARGE, Case, case
from pocketlens_bench.hostile.target import Target

Act = Callable[[Target], str]


def _said(words: str) -> Act:
    return lambda to: to.search(words=words)


def _alone(words: str) -> Act:
    return lambda to: to.wordless(words=words)


def _weighing(weight: float) -> Act:
    return lambda to: to.search(modifiers=[pb.Modifier(words="smaller", weight=weight)])


def _bytes_for_words(data: bytes) -> Act:
    """Field 4 by hand, so that it need not be UTF-8."""
    field = b"\x22" + bytes([len(data)]) + data
    return lambda to: to.raw(to.question(words=None).SerializeToString() + field)


CASES: list[Case] = [
    case("text", "nothing", "neither words nor tokens", REFUSED, lambda to: to.wordless()),
    case("text", "none-beside-tokens", "no words beside tokens", ANSWERED, _said("")),
    case("text", "blanks", "nothing but blanks, line ends and NUL", REFUSED, _alone(" \t\r\n\0\v")),
    case("text", "nul", "NUL between words", ANSWERED, _said("in\0red\0")),
    case("text", "one-megabyte", "1 MB of words", TOO_LARGE, _said("red " * 250_000)),
    case("text", "one-byte-too-many", "one byte more than words may have", REFUSED, _said("r" * (MAX_WORDS_BYTES + 1))),
    case("text", "full", "as many bytes as words may have, one word", ANSWERED, _said("r" * MAX_WORDS_BYTES)),
    case("text", "over-length", "more words than the text tower reads", ANSWERED, _said("red " * 1000)),
    case("text", "marks", "one letter under 2,000 combining marks", ANSWERED, _said("e" + "\u0301" * 2000)),
    case("text", "more-marks", "one letter under 10,000 combining marks", REFUSED, _said("e" + "\u0301" * 10_000)),
    case("text", "right-to-left", "overrides of direction and joiners", ANSWERED,
         _said("\u202e\u2066red\u2069\u202c \u200d\u200c\ufeff hat \U0001f468\u200d\U0001f469\u200d\U0001f467")),
    case("text", "invisible", "nothing but characters without width", ANSWERED,
         _said("\u200b\u2060\u00ad\ufeff" * 100)),
    case("text", "entities", "HTML entities, escaped twice", ANSWERED,
         _said("&amp;lt;red&amp;gt; &#x26;#0; &#1114112;")),
    case("text", "entity-bomb", "4,000 bytes of nested entities", ANSWERED, _said("&amp;" * 819)),
    case("text", "mojibake", "4,000 bytes decoded wrongly again and again", ANSWERED,
         _said("ÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢" * 80)),
    case("text", "placeholders", "the prompts' own placeholders", ANSWERED,
         _said("{sentence} {words} %s $1 {0.__class__}")),
    case("text", "special-tokens", "names of special tokens", ANSWERED,
         _said("<|endoftext|> <slot> [MASK] [SEP] </s> <pad> *")),
    case("text", "escapes", "a terminal's control codes", ANSWERED, _said("\x1b[2J\x1b]0;gone\x07 red")),
    case("text", "formulas", "what SQL, shells and templates would run", ANSWERED,
         _said("'; DROP TABLE pictures;-- $(reboot) ${jndi:ldap://x} {{7*7}}")),
    case("text", "not-unicode", "bytes that are no UTF-8", REFUSED, _bytes_for_words(b"\xff\xfe red")),
    case("text", "surrogate", "half of a surrogate pair as UTF-8", REFUSED, _bytes_for_words(b"\xed\xa0\x80")),
    case("text", "overlong", "a NUL in two bytes of UTF-8", REFUSED, _bytes_for_words(b"\xc0\x80")),
    case("text", "beyond-unicode", "a character beyond U+10FFFF", REFUSED, _bytes_for_words(b"\xf4\x90\x80\x80")),
    case("text", "nine-modifiers", "more modifiers than may be", REFUSED,
         lambda to: to.search(modifiers=[pb.Modifier(words="red")] * 9)),
    case("text", "weight-nan", "a weight that is NaN", REFUSED, _weighing(math.nan)),
    case("text", "weight-infinite", "a weight without end", REFUSED, _weighing(math.inf)),
    case("text", "weight-tiny", "a weight that is denormal", ANSWERED, _weighing(1e-45)),
    case("text", "only-unwanted", "nothing but what is not wanted", REFUSED,
         lambda to: to.wordless(modifiers=[pb.Modifier(words="red", weight=-1)])),
    case("text", "modifiers-too-long", "words that only together are too long", REFUSED,
         lambda to: to.search(modifiers=[pb.Modifier(words="x" * 1000)] * 5)),
]  # fmt: skip
