"""What one indexing run did."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class IngestReport:
    """What one indexing run did. Pictures are named as in their source."""

    indexed: int = 0  # pictures that went through the image tower
    skipped: int = 0  # pictures that were in the gallery already
    relabelled: int = 0  # of those, pictures whose payload changed
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (file, first file with the same bytes)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (file, reason)
    replaced: int = 0  # old pictures removed because their file has new content
    gone: list[str] = field(default_factory=list)  # files in the gallery that are no longer in the source
    pruned: int = 0  # pictures removed because their file is gone
    unused_payload: list[str] = field(default_factory=list)  # files the payload names that are not in the source
    lost_payload: list[tuple[str, str]] = field(default_factory=list)  # (file, first file): first's payload was kept
    size: int = 0  # pictures in the gallery at the end
    generation: str = ""
    near_duplicates: int = 0  # pairs in the report of near duplicates, where one was asked for
    seconds: dict[str, float] = field(default_factory=dict)  # by stage; those of the workers added up over all workers

    @property
    def merged(self) -> int:
        """Files whose bytes equal those of an earlier file."""
        return len(self.duplicates)
