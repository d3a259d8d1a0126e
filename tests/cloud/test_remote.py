"""What only a gallery on a server can do wrong: be away, be slow, be locked, be someone else's, be too old."""

import json
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from pocketlens_cloud.gallery.interface import Point, Search
from pocketlens_wire.errors import GalleryError, Unavailable

pytest.importorskip("qdrant_client", reason="pip install 'pocketlens[qdrant]'")

from pocketlens_cloud.gallery import qdrant, remote
from pocketlens_cloud.gallery.collections import CollectionVersions
from pocketlens_cloud.gallery.qdrant import Address, Server
from pocketlens_cloud.gallery.qdrant_terms import CollectionSettings
from pocketlens_cloud.gallery.remote import RemoteGallery
from pocketlens_cloud.gallery.versions import Record
from qdrant.fake import FakeQdrant

DIM = 8
ROW = np.eye(DIM, dtype=np.float32)[0]


@pytest.fixture
def fake(tmp_path) -> Iterator[FakeQdrant]:
    with FakeQdrant(tmp_path) as running:
        yield running


def connected(fake: FakeQdrant, **changes) -> Server:
    return Server(Address(url=fake.url, grpc_port=fake.grpc_port, timeout_s=1, **changes))


@pytest.fixture
def server(fake) -> Iterator[Server]:
    server = connected(fake)
    yield server
    server.close()


def made(server: Server, name: str = "shop.v0001", **settings) -> RemoteGallery:
    return RemoteGallery.create(
        server, name, dim=DIM, vectors=["original"], gallery_space="gs-1", layout=CollectionSettings(**settings)
    )


@pytest.fixture
def gallery(server) -> RemoteGallery:
    gallery = made(server)
    gallery.upsert([Point("0" * 32, {"original": ROW}, {"colour": "red"})])
    gallery.settle()
    return gallery


def everything(gallery: RemoteGallery) -> list:
    """Every kind of read."""
    return [
        lambda: gallery.search(Search(vector=ROW, name="original", top=1)),
        lambda: gallery.size,
        lambda: gallery.payload("0" * 32),
        lambda: list(gallery.payloads()),
        gallery.ping,
        lambda: gallery.indexed_keys,
    ]


def test_a_server_that_is_away_is_said_so_and_found_again(fake, gallery):
    fake.stop()
    for read in everything(gallery):
        with pytest.raises(Unavailable, match=f"127.0.0.1:{fake.grpc_port} .*is it running.*asked again"):
            read()
    with pytest.raises(Unavailable):
        gallery.upsert([Point("1" * 32, {"original": ROW})])
    fake.start()
    for _ in range(600):
        try:
            gallery.ping()
            break
        except Unavailable:
            fake.running.wait(0.1)
    for read in everything(gallery):
        read()


def test_a_call_that_fails_on_the_way_is_made_again_but_not_for_ever(fake, gallery):
    fake.failures = 2
    gallery.ping()
    gallery.upsert([Point("1" * 32, {"original": ROW})])
    assert gallery.size == 2
    fake.failures = 9
    with pytest.raises(Unavailable, match="going down"):
        gallery.ping()
    assert fake.failures == 6


def test_a_server_that_hangs_is_not_waited_for_for_ever(fake, gallery):
    fake.freeze()
    with pytest.raises(Unavailable, match="did not answer in time"):
        gallery.search(Search(vector=ROW, name="original", top=1))
    fake.thaw()
    assert gallery.search(Search(vector=ROW, name="original", top=1))[0].id == "0" * 32


def test_a_key_is_asked_for_and_kept_to_oneself(tmp_path, monkeypatch):
    with FakeQdrant(tmp_path, api_key="secret-7") as fake:
        server = connected(fake)
        with pytest.raises(GalleryError, match=r"refused the API key .*POCKETLENS_QDRANT_API_KEY"):
            server.collections()
        server.close()
        monkeypatch.setenv("POCKETLENS_QDRANT_API_KEY", "secret-7")
        server = connected(fake, api_key=qdrant.read_key(None))
        assert server.collections() == []
        assert "secret-7" not in repr(server.address)
        server.close()
    file = tmp_path / "key"
    file.write_text("secret-8\n")
    assert qdrant.read_key(file) == "secret-8"
    file.write_text("two words")
    with pytest.raises(GalleryError, match=r"on one line, and nothing else") as caught:
        qdrant.read_key(file)
    assert "two words" not in str(caught.value)


def test_a_key_does_not_leave_this_machine_unencrypted():
    with pytest.raises(GalleryError, match=r"would go to 10\.0\.0\.5 unencrypted: use https") as caught:
        Server(Address(url="http://10.0.0.5:6333", api_key="secret-7"))
    assert "secret-7" not in str(caught.value)
    Server(Address(url="https://10.0.0.5:6333", api_key="secret-7"))


@pytest.mark.parametrize("url", ["10.0.0.5:6333", "ftp://host", "http://", "http://user:word@host:6333", ""])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(GalleryError, match="name Qdrant's address like http://127") as caught:
        Server(Address(url=url))
    assert "word" not in str(caught.value)


def test_a_collection_of_someone_else_is_not_taken_for_ours(server, gallery):
    models = server.models
    vectors = {"original": models.VectorParams(size=DIM, distance=models.Distance.COSINE)}
    server.writing.create_collection("other", vectors, hnsw_config=models.HnswConfigDiff(m=16, ef_construct=100))
    with pytest.raises(GalleryError, match="collection other was not made by Pocketlens"):
        RemoteGallery.open(server, "other")
    with pytest.raises(GalleryError, match=r"collection nowhere .*doesn't exist.*gallery list"):
        RemoteGallery.open(server, "nowhere")
    with pytest.raises(GalleryError, match=r"already holds collection shop\.v0001"):
        made(server)
    newer = json.dumps({"format": 99})
    for text, match in ((newer, "format 99 is newer"), ("{", "damaged"), ("{}", "damaged")):
        server.set_metadata("other", remote.DESCRIPTION, text)
        with pytest.raises(GalleryError, match=match):
            RemoteGallery.open(server, "other")


def test_a_server_too_old_to_keep_metadata_is_refused_and_nothing_left(tmp_path):
    with FakeQdrant(tmp_path, keeps_metadata=False) as fake:
        server = connected(fake)
        with pytest.raises(GalleryError, match=r"is version 1\.20\.0, which keeps no metadata .*needs 1\.16"):
            made(server)
        assert server.collections() == []
        server.close()


def test_what_is_asked_of_a_cluster_reaches_it(fake, server):
    with pytest.raises(GalleryError, match="the fake has one node"):
        made(server, shards=3, replicas=2, write_consistency=2, vectors_on_disk=True, m=48, ef_construct=200)
    (came,) = fake.made
    assert (came.shard_number, came.replication_factor, came.write_consistency_factor) == (3, 2, 2)
    assert came.vectors_config.params_map.map["original"].on_disk
    assert (came.hnsw_config.m, came.hnsw_config.ef_construct) == (48, 200)
    assert came.on_disk_payload
    assert came.quantization_config.HasField("scalar")
    assert came.strict_mode_config.enabled
    assert not came.strict_mode_config.unindexed_filtering_retrieve


@pytest.mark.parametrize("quantisation", ["none", "int8", "binary"])
def test_each_quantisation_finds_its_own(server, quantisation):
    gallery = made(server, quantisation=quantisation)
    rows = np.random.default_rng(0).standard_normal((200, DIM)).astype(np.float32)
    gallery.upsert([Point(f"{i:032x}", {"original": row}) for i, row in enumerate(rows)])
    gallery.settle()
    opened = RemoteGallery.open(server, "shop.v0001")
    for each in (gallery, opened):
        found = each.search_many([Search(vector=row, name="original", top=1) for row in rows[:20]])
        assert [hits[0].id for hits in found] == [f"{i:032x}" for i in range(20)]


def test_a_second_writer_is_found_out(server, gallery):
    one, two = RemoteGallery.open(server, "shop.v0001"), RemoteGallery.open(server, "shop.v0001")
    one.upsert([Point("1" * 32, {"original": ROW})])
    two.upsert([Point("2" * 32, {"original": ROW})])
    with pytest.raises(GalleryError, match="was written by another process meanwhile"):
        one.settle()
    two.settle()


def test_settling_waits_for_the_servers_index(fake, server, gallery, monkeypatch):
    monkeypatch.setattr(remote, "SETTLE_POLL_S", 0)
    fake.statuses = ["Yellow", "Grey", "Grey", "Green"]
    gallery.upsert([Point("1" * 32, {"original": ROW})])
    gallery.settle()
    assert (fake.statuses, fake.nudges, gallery.settled) == ([], 1, True)
    gallery.upsert([Point("2" * 32, {"original": ROW})])
    fake.statuses = ["Red"]
    with pytest.raises(GalleryError, match="failed to build its search index"):
        gallery.settle()
    assert not RemoteGallery.open(server, "shop.v0001").settled


def test_reads_ask_as_many_replicas_as_they_are_told(fake, gallery):
    """The fake has one replica, so only that the server takes the request is shown."""
    for wanted in (2, "majority", "quorum", "all"):
        server = connected(fake, read_consistency=wanted)
        for read in everything(RemoteGallery.open(server, "shop.v0001")):
            read()
        server.close()


def test_a_snapshot_that_would_hold_a_part_only_is_refused(fake, server, gallery):
    versions = CollectionVersions(server, "shop")
    versions.note("v0001", Record(size=1, generation=gallery.generation))
    fake.nodes = 3
    with pytest.raises(GalleryError, match=r"lies on 3 nodes, and a snapshot holds one node's part only"):
        versions.save("v0001", None)
    fake.nodes = 1
    assert versions.save("v0001", None).size > 0


def test_an_alias_that_points_elsewhere_is_named(server, gallery):
    server.point("shop", "shop.v0001")
    assert RemoteGallery.open(server, "shop").title.endswith("collection shop.v0001")
    assert CollectionVersions(server, "shop").live() == "v0001"
    server.point("hat", "shop.v0001")
    with pytest.raises(GalleryError, match=r"the alias points to shop\.v0001, which is no version of it"):
        CollectionVersions(server, "hat").live()
    with pytest.raises(GalleryError, match="use letters, digits"):
        CollectionVersions(server, "a.b")


def test_without_the_library_the_way_to_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(GalleryError, match=r"pip install 'pocketlens\[qdrant\]'"):
        Server(Address(url="http://127.0.0.1:6333"))


def test_the_fake_refuses_what_it_does_not_do(fake, server, gallery):
    """Or a test over it could pass where a real server would not do what was asked."""
    models = server.models
    with pytest.raises(Exception, match="UNIMPLEMENTED"):
        server.reading.facet("shop.v0001", key="colour")
    with pytest.raises(Exception, match="the fake does not read"):
        server.reading.count("shop.v0001", count_filter=models.Filter(must=[]))
    with pytest.raises(Exception, match="above the limit"):
        server.writing.upsert(
            "shop.v0001", [models.PointStruct(id=_id(i), vector={"original": ROW}) for i in range(1025)]
        )
    flag = models.Filter(must=[models.FieldCondition(key="colour", match=models.MatchValue(value=True))])
    unindexed = models.Filter(must=[models.FieldCondition(key="size", match=models.MatchValue(value="x"))])
    for where, why in ((flag, "does not match boolean"), (unindexed, "Index required")):
        request = models.QueryRequest(query=ROW.tolist(), using="original", filter=where, limit=1)
        with pytest.raises(Exception, match=why):
            server.reading.query_batch_points("shop.v0001", [request])


def _id(i: int) -> str:
    return f"00000000-0000-0000-0000-{i:012x}"
