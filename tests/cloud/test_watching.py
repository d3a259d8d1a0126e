"""Watching a source: each change once, after it has come to rest."""

from threading import Event

import pytest
from pocketlens_cloud.indexing import watching
from pocketlens_cloud.indexing.ingest import index
from pocketlens_cloud.indexing.watching import RESTLESS, watch
from pocketlens_wire.errors import BadBundle, GalleryError


class Steps(Event):
    """Does one thing between two looks, and stops after the last."""

    def __init__(self, *steps):
        super().__init__()
        self._steps = list(steps)

    def wait(self, timeout=None):
        if not self._steps:
            return True
        self._steps.pop(0)()
        return False


def nothing() -> None:
    pass


def test_what_changes_is_indexed_once_it_rests(toy, tmp_path, draw_picture):
    folder = tmp_path / "pictures"
    draw_picture(folder / "a.png", 1)
    sizes, told = [], []
    steps = Steps(
        nothing,
        lambda: draw_picture(folder / "b.png", 2),
        lambda: draw_picture(folder / "c.png", 3),  # still being copied
        nothing,
        nothing,
        (folder / "b.png").unlink,
        nothing,
        lambda: folder.rename(tmp_path / "away"),
        lambda: (tmp_path / "away").rename(folder),
        nothing,
    )
    watch(
        folder, lambda: index(folder, tmp_path / "g", toy.bundle, prune=True), every_s=0, stop=steps,
        on_report=lambda report: sizes.append(report.size), on_trouble=lambda error: told.append(str(error)),
    )  # fmt: skip
    assert sizes == [1, 3, 2]
    assert len(told) == 1 and "is not a folder" in told[0]


def test_a_source_that_never_rests_is_indexed_all_the_same(monkeypatch):
    looks = iter(range(1000))
    monkeypatch.setattr(watching, "_look", lambda source: {"a": str(next(looks))})
    runs = []
    watch("x", lambda: runs.append(1), every_s=0, stop=Steps(*[nothing] * (2 * RESTLESS)),
          on_report=nothing_of, on_trouble=nothing_of)  # fmt: skip
    assert len(runs) == 3


def test_a_failed_run_is_tried_again_and_a_wrong_bundle_is_not(monkeypatch):
    monkeypatch.setattr(watching, "_look", lambda source: {})
    answers = [GalleryError("held"), None, BadBundle("no")]

    def once():
        if error := answers.pop(0):
            raise error

    told = []
    watch("x", once, every_s=0, stop=Steps(nothing, nothing), on_report=nothing_of, on_trouble=told.append)
    assert len(told) == 1 and len(answers) == 1
    with pytest.raises(BadBundle):
        watch("x", once, every_s=0, stop=Steps(), on_report=nothing_of, on_trouble=told.append)


def nothing_of(_: object) -> None:
    pass
