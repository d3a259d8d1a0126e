"""What the parts are done to: a gallery of two versions without a picture in common, and questions.

Called by driver.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.gallery import versions as steps
from pocketlens_cloud.gallery.folder import FolderVersions
from pocketlens_cloud.indexing.building import build
from pocketlens_samples.queries import composed_set, write_gallery
from pocketlens_wire.errors import ServerFault

from pocketlens_bench.load import token_messages
from pocketlens_bench.world import OnProgress, photographed


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done, and how fast.

    seconds: of each part; rate: questions a second; pictures: of each version; questions: that are asked again and
    again; timeout_s: a question's deadline; pause_s: at most, between two disturbances; down_s: at most, until what was
    killed is started again; indexed, index_within_s: pictures of the indexing that is killed, and the longest time
    before a kill."""

    seconds: float = 300.0
    rate: float = 30.0
    pictures: int = 400
    questions: int = 60
    timeout_s: float = 5.0
    pause_s: float = 3.0
    down_s: float = 2.0
    indexed: int = 400
    index_within_s: float = 6.0


@dataclass(frozen=True)
class Setting:
    """shop: versions `first` (live) and `second`; contents: ids by generation."""

    bundle: Path
    home: Path
    shop: Path
    first: str
    second: str
    questions: tuple[bytes, ...]
    contents: dict[str, frozenset[str]]
    sizes: Sizes
    seed: int


def made(bundle: Path, home: Path, sizes: Sizes, seed: int, on_progress: OnProgress) -> Setting:
    """Draw, index, verify and promote. Raises the PocketlensError of whatever part fails."""
    found = composed_set(queries=sizes.questions, gallery=max(2 * sizes.pictures, 5 * sizes.questions))
    shop, space = FolderVersions(home / "shop"), open_cloud_half(bundle)[1].gallery_space
    contents: dict[str, frozenset[str]] = {}
    names = []
    for turn in range(2):
        on_progress("two versions of a gallery", turn, 2)
        folder = home / f"pictures-{turn}"
        write_gallery(folder, found.gallery[turn * sizes.pictures : (turn + 1) * sizes.pictures], processes=1)
        name, _ = build(shop, folder, bundle)
        names.append(name)
        with shop.open(name) as gallery:
            contents[gallery.generation] = frozenset(point for point, _ in gallery.payloads())
    if len(contents) != 2 or frozenset.intersection(*contents.values()):
        raise ServerFault("the two versions are to have no picture in common, and they have")
    for name in reversed(names):
        release(shop, name, space)
    messages = token_messages(bundle, photographed([query.anchor for query in found.queries]), found)
    return Setting(bundle, home, home / "shop", names[0], names[1], messages, contents, sizes, seed)


def release(shop: FolderVersions, name: str, space: str) -> None:
    """Verify and promote."""
    if wrong := [finding for finding in steps.verify(shop, name, space) if not finding.ok]:
        raise ServerFault(f"{name} is not as it was built: {wrong[0].what}, {wrong[0].detail}")
    steps.promote(shop, name, space)


def copied(setting: Setting, name: str, to: Path) -> Path:
    """`to`, another machine's gallery with `name` live, made of a snapshot as an operator would."""
    shop, space = FolderVersions(setting.shop), open_cloud_half(setting.bundle)[1].gallery_space
    file = setting.home / f"{name}.snapshot"
    if not file.exists():
        shop.save(name, file)
    versions = FolderVersions(to)
    release(versions, steps.restore(versions, str(file), space), space)
    return to
