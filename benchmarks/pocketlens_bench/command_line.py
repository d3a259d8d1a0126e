"""What was typed, as a result may show it: no folder of the machine, no user's name.

cli/ says what was typed; conditions.py writes it into every result."""

import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

PUBLISHED = re.compile(r"(open_clip:[\w.-]+|hf:[\w.-]+)/[\w.-]+")
FAMILY = re.compile(r"run:|hf:|open_clip:[\w./-]+@")  # before a teacher's folder or file
_typed: ContextVar[tuple[str, ...] | None] = ContextVar("typed", default=None)


def remember_command(arguments: Sequence[str]) -> None:
    """Keep what was typed after `pocketlens-bench`, for the cards written from here on."""
    _typed.set(tuple(shown_arguments(arguments)))


def shown_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """Arguments as a card shows them: of a path the last name, and not even that of the home folder."""
    for argument in arguments:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        yield f"{option}{equals}{_last_name(value)}"


def typed_command() -> tuple[str, ...] | None:
    """What was typed after `pocketlens-bench`; None when the measuring function was called by other code."""
    return _typed.get()


def _last_name(value: str) -> str:
    if not re.search(r"[/\\~]", value):
        return value
    if (teacher := PUBLISHED.fullmatch(value)) is not None:
        return teacher[0]  # a name of the world's, no place of this machine
    if (family := FAMILY.match(value)) is not None:
        return family[0] + _last_name(value[family.end() :])
    name = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return "DIR" if name in {"", "~", ".", "..", Path.home().name} else name
