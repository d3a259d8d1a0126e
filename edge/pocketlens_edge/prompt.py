"""The language of `pocketlens-edge converse`: one line in, one turn out.

Owns what a line means. What a turn is, converse.py; how it is shown, show.py. Called by the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Final

from pocketlens_wire.errors import BadQuery

from pocketlens_edge.conditions import parse_filter
from pocketlens_edge.converse import Conversation, Turn
from pocketlens_edge.questions import Mode, Modifier, unwanted

HELP: Final = """\
words              more of that: in red
                   an empty line, at the beginning: like the picture, as it is
/not WORDS         away from that
/weigh W WORDS     the same in measure: W is -2 to 2, words alone have 1, /not has -1
/replace N WORDS   other words in place of those of turn N
/drop N            without the words of turn N
/back [N]          undo the last turn, or the last N
/to N              back to how it was after turn N
/where CONDITION.. only pictures of which these hold, as with search --where; alone: all pictures
/top N  /next  /page N  /least SCORE  /group KEY [SIZE]  /mode zero-shot|tuned
/help  /quit"""

_Said = Callable[[Conversation, str], Turn]


class Over(Exception):
    """The person has had enough."""


class Told(Exception):
    """Nothing to ask; its text is for the person."""


def obey(conversation: Conversation, line: str, last: Turn | None) -> Turn:
    """Do what `line` says. last: the latest turn that was answered.

    Raises Over and Told; BadQuery for what means nothing; what the turn's asking raises."""
    said = line.strip()
    if not said.startswith("/"):
        if said:
            return conversation.say(said)
        if last is None:
            return conversation.look()
        raise Told("say what should be different, or /help")
    name, _, rest = said[1:].partition(" ")
    if name in ("quit", "q", "exit"):
        raise Over
    if name == "help":
        raise Told(HELP)
    if name in ("next", "page"):
        return _page(conversation, name, rest.strip(), last)
    if name not in _COMMANDS:
        known = sorted({*_COMMANDS, "next", "page", "help", "quit"})
        raise BadQuery(f"`/{name}` is no command: {', '.join(f'/{each}' for each in known)}; see /help.")
    return _COMMANDS[name](conversation, rest.strip())


def _page(conversation: Conversation, name: str, rest: str, last: Turn | None) -> Turn:
    if last is None:
        raise BadQuery("there is no first page yet: say what to look for.")
    if name == "next":
        return conversation.change(skip=last.skip + last.top)
    return conversation.change(skip=(_whole(rest, "/page", least=1) - 1) * last.top)


def _not(conversation: Conversation, rest: str) -> Turn:
    return conversation.say(unwanted(rest))


def _weigh(conversation: Conversation, rest: str) -> Turn:
    weight, _, words = rest.partition(" ")
    return conversation.say(Modifier(words.strip(), _number(weight, "/weigh")))


def _replace(conversation: Conversation, rest: str) -> Turn:
    turn, _, words = rest.partition(" ")
    if not words.strip():
        raise BadQuery("/replace takes a turn and words, as in /replace 2 in green; /drop 2 takes them out.")
    return conversation.replace(_whole(turn, "/replace"), words.strip())


def _drop(conversation: Conversation, rest: str) -> Turn:
    return conversation.replace(_whole(rest, "/drop"), None)


def _back(conversation: Conversation, rest: str) -> Turn:
    return conversation.back(_whole(rest, "/back") if rest else 1)


def _back_to(conversation: Conversation, rest: str) -> Turn:
    return conversation.back_to(_whole(rest, "/to"))


def _where(conversation: Conversation, rest: str) -> Turn:
    try:
        conditions = shlex.split(rest)
    except ValueError as error:
        raise BadQuery(f"/where {rest}: a quotation is not closed.") from error
    return conversation.change(where=parse_filter(conditions))


def _top(conversation: Conversation, rest: str) -> Turn:
    return conversation.change(top=_whole(rest, "/top", least=1))


def _least(conversation: Conversation, rest: str) -> Turn:
    return conversation.change(least_score=_number(rest, "/least") if rest else -1.0)


def _group(conversation: Conversation, rest: str) -> Turn:
    key, _, size = rest.partition(" ")
    return conversation.change(group_by=key, group_size=_whole(size.strip(), "/group", least=1) if size else None)


def _mode(conversation: Conversation, rest: str) -> Turn:
    if rest not in tuple(Mode):
        raise BadQuery(f"mode is {rest or 'nothing'}; it is one of {', '.join(Mode)}.")
    return conversation.change(mode=Mode(rest))


_COMMANDS: Final[dict[str, _Said]] = {
    "not": _not,
    "weigh": _weigh,
    "replace": _replace,
    "drop": _drop,
    "back": _back,
    "to": _back_to,
    "where": _where,
    "top": _top,
    "least": _least,
    "group": _group,
    "mode": _mode,
}


def _whole(text: str, command: str, *, least: int = 0) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise BadQuery(f"{command} takes a whole number of at least {least}; {_came(text)}.")
    return int(text)


def _number(text: str, command: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadQuery(f"{command} takes a number; {_came(text)}.") from None


def _came(text: str) -> str:
    return f"`{text}` came" if text else "nothing came"
