"""Whether an answer is the right one, and what a crowd of answers comes to.

Owns what counts as the same answer, as one of two generations at once, and how errors are counted. An undisturbed
server said beforehand what is right. Called by the parts."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pocketlens_edge.client import Answer
from pocketlens_wire.errors import WITHOUT_A_WORD, Overloaded, PocketlensError, TooLate

SAME, MIXED, DIFFERING, UNKNOWN = "same", "mixed", "differing", "of an unknown generation"
WRONG = (MIXED, DIFFERING, UNKNOWN)
TURNED_AWAY = Overloaded.__name__  # for load, with when to come again: counted apart, as nothing broke
DROPPED = "Dropped"  # a call that nobody answered: for load as well, or because its server went; never passed over
LATE = TooLate.__name__
PUNCTUAL_S = 0.05  # an asker that wakes later than that had no processor: the machine, not only the server, was behind
COSINE = 1e-4  # by which scores of the same answer may differ: the tower sums in another order in other company

Hits = Sequence[tuple[str, float]]  # id and score, best first


@dataclass(frozen=True)
class Right:
    """hits: by generation, of each question; contents: the ids that lie in each generation."""

    hits: Mapping[str, Sequence[Hits]]
    contents: Mapping[str, frozenset[str]]

    def verdict(self, answer: Answer, question: int) -> str:
        """SAME, or what is wrong with it."""
        if answer.generation not in self.hits:
            return UNKNOWN
        if not self.contents[answer.generation].issuperset(hit.id for hit in answer.hits):
            return MIXED
        return SAME if alike(hits_of(answer), self.hits[answer.generation][question]) else DIFFERING


def hits_of(answer: Answer) -> Hits:
    return [(hit.id, hit.score) for hit in answer.hits]


def alike(one: Hits, other: Hits) -> bool:
    """Whether two rankings are the same but for rounding: pictures of one score may change places, at the end too."""
    if len(one) != len(other) or any(abs(a - b) > COSINE for (_, a), (_, b) in zip(one, other, strict=True)):
        return False
    here, there = dict(one), dict(other)
    if len(here) != len(one) or len(there) != len(other):
        return False
    last = min((score for _, score in other), default=0.0)
    return all(abs(score - there.get(picture, last)) <= COSINE for picture, score in here.items())


@dataclass(frozen=True)
class Asked:
    """One question: when it was due, how late it was sent, when it was answered after it was due (seconds); said: a
    verdict, or the name of the error that came, and then its words; woke_s: how late the asker itself awoke for it,
    before it waited for anything of its own; None where it has no times to keep."""

    due: float
    lag_s: float
    took_s: float
    said: str
    words: str = ""
    generation: str = ""
    woke_s: float | None = None


def judged(ask: Callable[[], Answer], right: Right, question: int) -> tuple[str, str, str]:
    """(said, words, generation) of an answer, or of the error instead of one."""
    try:
        answer = ask()
    except PocketlensError as error:
        return name_of(error), str(error), ""
    return right.verdict(answer, question), "", answer.generation


def name_of(error: PocketlensError) -> str:
    """What an error is counted as."""
    return DROPPED if isinstance(error, Overloaded) and WITHOUT_A_WORD in str(error) else type(error).__name__


def late_while_still(outcomes: Sequence[Asked]) -> int | None:
    """How many of the late ones were under way while their asker was not punctual; None where that is not known."""
    late = [one for one in outcomes if one.said == LATE]
    if late and any(one.woke_s is None for one in outcomes):
        return None
    still = sorted(one.due for one in outcomes if (one.woke_s or 0.0) >= PUNCTUAL_S)
    return sum(bisect_left(still, one.due) < bisect_right(still, one.due + one.took_s) for one in late)


def tally(name: str, outcomes: Sequence[Asked]) -> dict[str, Any]:
    """A row: how many were asked, answered rightly, wrongly, turned away, and failed, by the error's name."""
    said = Counter(one.said for one in outcomes)
    answered = [1e3 * one.took_s for one in outcomes if one.said == SAME]
    p50, p99, slowest = (float(np.quantile(answered, q)) for q in (0.5, 0.99, 1)) if answered else (0.0, 0.0, 0.0)
    errors = {one: count for one, count in said.items() if one not in (SAME, TURNED_AWAY, *WRONG)}
    return {
        "name": name, "asked": len(outcomes), "answered": said[SAME], "errors": errors,
        "examples": {one.said: one.words[:200] for one in reversed(outcomes) if one.said in errors},
        "late_while_still": late_while_still(outcomes),
        "turned_away": said[TURNED_AWAY], **{wrong: said[wrong] for wrong in WRONG},
        "p50_ms": p50, "p99_ms": p99, "slowest_ms": slowest,
        "asker_late_p99_ms": 1e3 * float(np.quantile([one.lag_s for one in outcomes], 0.99)) if outcomes else 0.0,
    }  # fmt: skip


def fact(name: str, value: float, *, must_be_zero: bool = False) -> dict[str, Any]:
    """Something else that was counted."""
    return {"name": name, "value": value, "must_be_zero": must_be_zero}


def broken(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences: everything that should have been none and was not."""
    found: list[str] = []
    for table in tables:
        for row in table["rows"]:
            where, asked = f"{table['title']}, {row['name']}", f"of {row['asked']:,} questions"
            found += [
                f"{where}: {count:,} {asked} ended with {error}{_of_which(row, error)}, as in: {row['examples'][error]}"
                for error, count in row["errors"].items()
            ]
            found += [f"{where}: {row[wrong]:,} {asked} had an answer that is {wrong}" for wrong in WRONG if row[wrong]]
            if not row["answered"]:
                found.append(f"{where}: no question was answered")
        found += [
            f"{table['title']}: {each['name']}: {each['value']:,}"
            for each in table["facts"]
            if each["must_be_zero"] and each["value"]
        ]
    return found


def _of_which(row: Mapping[str, Any], error: str) -> str:
    still = row["late_while_still"]
    return f" ({still:,} while the machine stood still)" if error == LATE and still else ""
