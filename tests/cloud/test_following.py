"""A serving process follows what is promoted: no error, no answer of two versions, the old one closed in the end."""

import logging
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from pocketlens_cloud.gallery import versions as steps
from pocketlens_cloud.gallery.folder import CURRENT, FolderVersions
from pocketlens_cloud.gallery.following import FollowingGallery
from pocketlens_cloud.gallery.interface import Point, Search
from pocketlens_cloud.gallery.versions import Record, Versions
from pocketlens_cloud.service import Service
from pocketlens_wire.errors import GalleryError
from pocketlens_wire.v1 import retrieval_pb2 as pb
from qdrant.servers import SERVERS

PICTURES = 30


@pytest.fixture(params=["folder", *SERVERS])
def versions(request, tmp_path) -> Iterator[Versions]:
    if request.param == "folder":
        yield FolderVersions(tmp_path / "shop")
        return
    pytest.importorskip("qdrant_client", reason="pip install 'pocketlens[qdrant]'")
    from pocketlens_cloud.gallery.collections import CollectionVersions

    with SERVERS[request.param](tmp_path) as running:
        yield CollectionVersions(running.server, running.name)


def make(versions: Versions, toy, *, space: str | None = None, pictures: int = PICTURES) -> str:
    """A version whose pictures all carry its name."""
    name = steps.following(versions.names())
    gallery = versions.create(
        name, dim=toy.dim, vectors=["original", "union"], gallery_space=space or toy.gallery_space
    )
    rows = np.random.default_rng(len(name)).standard_normal((PICTURES, toy.dim)).astype(np.float32)
    gallery.upsert(
        [
            Point(f"{int(name[1:]):016x}{i:016x}", {"original": row, "union": row}, {"version": name})
            for i, row in enumerate(rows[:pictures])
        ]
    )
    gallery.settle()
    versions.note(name, Record(size=gallery.size, generation=gallery.generation))
    gallery.close()
    return name


def promote(versions: Versions, name: str, toy) -> None:
    steps.promote(versions, name, toy.gallery_space, unverified=True)


def asked(toy, top: int = 5) -> Search:
    return Search(vector=np.eye(toy.dim, dtype=np.float32)[0], name="original", top=top)


def test_promotions_under_concurrent_questions_over_the_wire(versions, toy, composer, serve):
    """Two versions promoted and rolled back in turn while four askers ask without a pause."""
    first, second = make(versions, toy), make(versions, toy)
    promote(versions, first, toy)
    generations = {versions.describe(name).generation: name for name in (first, second)}
    stop, seen, wrong = threading.Event(), set(), []

    with FollowingGallery(versions, every_s=0.01).start() as gallery, serve(Service(composer, gallery)) as running:

        def ask() -> None:
            while not stop.is_set():
                try:
                    reply = running.search(toy.request())
                    found = {hit.payload["version"].text for hit in reply.hits}
                    if found != {generations[reply.generation]}:
                        wrong.append((reply.generation, found))
                    seen.add(generations[reply.generation])
                except Exception as error:  # noqa: BLE001 - whatever it is, it fails the test
                    wrong.append(error)

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        for turn in range(4):
            promote(versions, second, toy) if turn % 2 == 0 else steps.rollback(versions)
            until(lambda: gallery.version == versions.live())
            seen.clear()
            until(lambda: versions.live() in seen or wrong)
        stop.set()
        for asker in askers:
            asker.join()
        assert wrong == []
        described = running.stub.Describe(pb.DescribeRequest())
        assert generations[described.generation] == first
    for name in (first, second):
        versions.open(name).close()  # nothing holds them any more


def until(condition) -> None:
    """Wait for what another thread does; a minute at most, so that a hang is a failure."""
    pause = threading.Event()
    for _ in range(12_000):
        if condition():
            return
        pause.wait(0.005)
    pytest.fail("it did not happen within a minute")


def test_a_search_in_flight_keeps_its_version_open(versions, toy):
    first, second = make(versions, toy), make(versions, toy)
    promote(versions, first, toy)
    with FollowingGallery(versions) as gallery:
        with gallery.pinned() as held:
            promote(versions, second, toy)
            assert gallery.look()
            assert gallery.version == second
            assert gallery.search(asked(toy))[0].payload == {"version": second}
            assert held.search(asked(toy))[0].payload == {"version": first}
            assert held.generation == versions.describe(first).generation
        assert not gallery.look()  # closes what nobody is at any more
        versions.open(first).close()
    with pytest.raises(GalleryError, match="was closed"):
        gallery.search(asked(toy))


def test_what_may_not_be_served_is_refused_once_in_the_log_and_the_old_one_kept(versions, toy, caplog):
    first, foreign, empty = make(versions, toy), make(versions, toy, space="gs-other"), make(versions, toy, pictures=0)
    promote(versions, first, toy)
    with FollowingGallery(versions) as gallery, caplog.at_level(logging.ERROR):
        for name, why in ((foreign, "lies in gallery space `gs-other`"), (empty, "holds no pictures")):
            caplog.clear()
            versions.point_to(name)
            assert not gallery.look()
            assert not gallery.look()
            assert [why in record.getMessage() for record in caplog.records] == [True]
            assert gallery.version == first
            assert gallery.search(asked(toy))[0].payload == {"version": first}
        versions.point_to(first)
        assert not gallery.look()


def test_it_is_not_written_to(versions, toy):
    name = make(versions, toy)
    promote(versions, name, toy)
    with FollowingGallery(versions) as gallery:
        for write in (
            lambda: gallery.upsert([]),
            lambda: gallery.set_payload("0" * 32, {}),
            lambda: gallery.delete([]),
            gallery.settle,
        ):
            with pytest.raises(GalleryError, match="is being served: write to another version"):
                write()


def test_nothing_live_does_not_start(versions, toy):
    make(versions, toy)
    with pytest.raises(GalleryError, match=r"has no live version: .*gallery promote"):
        FollowingGallery(versions)


def test_a_version_that_another_process_holds_is_tried_again(tmp_path, toy):
    versions = FolderVersions(tmp_path / "shop")
    first, second = make(versions, toy), make(versions, toy)
    promote(versions, first, toy)
    with FollowingGallery(versions) as gallery:
        builder = versions.open(second)
        promote(versions, second, toy)
        assert not gallery.look()
        builder.close()
        assert gallery.look()
        (tmp_path / "shop" / CURRENT).write_text("nonsense")
        assert not gallery.look()
        assert gallery.version == second
