"""One house for all properties, left at the end; a busy machine turns no question away."""

from collections.abc import Iterator

import pytest
from fuzz import border
from pocketlens_cloud.serving import front


@pytest.fixture(scope="module", autouse=True)
def _house() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "PATIENCE_S", float("inf"))
        yield
        border.leave()
