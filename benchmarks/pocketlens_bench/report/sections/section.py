"""What each kind of measurement must give for the page."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from pocketlens_bench.report.blocks import Block
from pocketlens_bench.report.results import Result

UNKNOWN = "Nobody worked it out: these results do not say"


class Section(ABC):
    """One kind of measurement on the page."""

    kind: ClassVar[str]  # as results files name it, and the command that measures it

    @abstractmethod
    def title(self, result: Result) -> str:
        """The heading."""

    @abstractmethod
    def blocks(self, result: Result) -> Iterator[Block]:
        """What was asked in a sentence or two, then tables and plots. Raises BadResult."""

    def lost(self, result: Result) -> list[str]:
        """Where what Pocketlens does is beaten or fails: sentences; none if it was looked for and nothing was found."""
        return result.data.sentences("lost") if result.data.get("lost") else [UNKNOWN]

    def cautions(self, result: Result) -> list[str]:
        """What the figures do not say."""
        honesty = result.data.get("honesty")
        left_out = [f"Left out: {said}" for said in result.data.sentences("left_out")]
        return [*([honesty.text()] if honesty else []), *left_out]
