"""Every question over the real gRPC stack: good ones answered as numpy would, bad ones refused in plain words."""

import logging
import math
import os
import time

import grpc
import numpy as np
import pytest
from pocketlens_cloud import service as service_module
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.indexing.ingest import content_id, index, list_pictures
from pocketlens_cloud.service import Service
from pocketlens_wire import limits
from pocketlens_wire.errors import KIND_METADATA, GalleryError, SpaceMismatch
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb

COSINE = 1e-5
INVALID, FAILED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
PHOTO = ["a", "photo", "of"]


def condition(key: str, **value) -> pb.Condition:
    return pb.Condition(key=key, equals=pb.Value(**value))


def sentence(**changes) -> pb.Sentence:
    """Two tokens of width 12 as f32, with fields changed."""
    whole = pack(np.ones((2, 12), np.float32), Encoding.F32)
    for name, value in changes.items():
        setattr(whole, name, value)
    return whole


def floats(value: float) -> bytes:
    return np.full(24, value, "<f4").tobytes()


@pytest.fixture(scope="module")
def seen(toy, pictures):
    """(ids, vectors) of the indexed pictures, by numpy."""
    files = [pictures / file for file in list_pictures(pictures)]
    return [content_id(file.read_bytes()) for file in files], toy.vectors(toy.pixels(files))


@pytest.mark.parametrize("mode", [pb.MODE_ZERO_SHOT, pb.MODE_TUNED, pb.MODE_UNSPECIFIED])
@pytest.mark.parametrize("ask", ["both", "picture", "words"])
def test_an_answer_is_what_numpy_gives(toy, running, seen, mode, ask):
    tokens = toy.sentence(5)
    picture = toy.text([*PHOTO, tokens]) if ask != "words" else toy.text([])
    words = toy.text(["in", "red"]) if ask != "picture" else toy.text([])
    both = {"both": toy.text([*PHOTO, tokens, ",", "in", "red"]), "picture": picture, "words": words}[ask]
    tuned = mode != pb.MODE_ZERO_SHOT
    query = toy.query(both, picture, words) if tuned else both
    ids, vectors = seen
    scores = vectors["union" if tuned else "original"] @ query
    best = np.argsort(-scores)[:7]

    reply = running.search(
        toy.request(
            sentence=None if ask == "words" else pack(tokens, Encoding.F32),
            encoder=None if ask == "words" else toy.encoder,
            words="" if ask == "picture" else "in red",
            mode=mode,
            top=7,
        )
    )
    assert [hit.id for hit in reply.hits] == [ids[i] for i in best]
    assert np.abs([hit.score for hit in reply.hits] - scores[best]).max() < COSINE
    assert reply.mode == (pb.MODE_TUNED if tuned else pb.MODE_ZERO_SHOT)
    assert (reply.token_space, reply.gallery_space) == (toy.token_space, toy.gallery_space)
    assert (list(reply.notes), reply.words_used) == ([], "")
    stages = reply.times
    parts = stages.check_ms + stages.queue_ms + stages.text_tower_ms + stages.heads_ms + stages.search_ms
    assert min(stages.check_ms, stages.search_ms) > 0 <= stages.text_tower_ms  # which is 0 from memory
    assert parts <= stages.total_ms + 0.01
    assert stages.total_ms < 1000


def test_payload_travels_with_its_types_and_filters_hold(toy, running):
    reply = running.search(toy.request(top=40, filter=[condition("colour", text="red"), condition("sold", flag=True)]))
    assert len(reply.hits) == len([i for i in range(40) if i % 3 == 0 and i % 2 == 0])
    for hit in reply.hits:
        kinds = {key: value.WhichOneof("kind") for key, value in hit.payload.items()}
        assert kinds == {"file": "text", "colour": "text", "count": "integer", "price": "number", "sold": "flag"}
        assert (hit.payload["colour"].text, hit.payload["sold"].flag) == ("red", True)
    for key, value in (("count", {"integer": 3}), ("price", {"number": 2.5}), ("price", {"integer": 2})):
        hits = running.search(toy.request(top=40, filter=[condition(key, **value)])).hits
        assert len(hits) == (10 if key == "count" else 1)


def test_cut_and_unknown_words_are_reported(toy, running):
    reply = running.search(toy.request(words="zebra " + "red " * 100))
    assert len(reply.notes) == 2
    assert reply.words_used.startswith("zebra red red")
    assert len(reply.words_used.split()) < toy.context


def test_describe_says_what_is_spoken_and_allowed(toy, running):
    told = running.stub.Describe(pb.DescribeRequest())
    assert (told.token_space, told.gallery_space, list(told.encoders)) == (
        toy.token_space,
        toy.gallery_space,
        [toy.encoder],
    )
    assert (list(told.modes), told.default_mode) == ([pb.MODE_ZERO_SHOT, pb.MODE_TUNED], pb.MODE_TUNED)
    assert (told.token_width, told.max_tokens, told.gallery_size) == (toy.width, 8, 40)
    assert (told.max_top, told.max_request_bytes) == (limits.MAX_TOP, limits.MAX_REQUEST_BYTES)
    assert list(told.payload_keys) == ["colour", "count", "file", "price", "sold"]
    assert told.provider.endswith("ExecutionProvider")
    assert told.generation == running.search(toy.request()).generation
    assert abs(told.unix_ms / 1000 - time.time()) < 60


BAD = {
    "no token space": ({"token_space": None}, INVALID, "token_space is missing"),
    "other token space": ({"token_space": "ts-" + "9" * 16}, FAILED, "ts-9999999999999999"),
    "endless token space": ({"token_space": "x" * 9000}, FAILED, "x..."),
    "other gallery space": ({"gallery_space": "gs-" + "9" * 16}, FAILED, "gs-9999999999999999"),
    "no encoder": ({"encoder": None}, INVALID, "encoder is missing"),
    "other encoder": ({"encoder": "enc-" + "9" * 16}, FAILED, "enc-9999999999999999"),
    "nothing asked": ({"sentence": None, "words": None}, INVALID, "the query is empty"),
    "only blanks asked": ({"sentence": None, "words": " \n\0 "}, INVALID, "the query is empty"),
    "top 0": ({"top": 0}, INVALID, "top must be 1 to 1000; 0 came"),
    "top huge": ({"top": 2**32 - 1}, INVALID, "top must be 1 to 1000"),
    "mode 99": ({"mode": 99}, INVALID, "mode number 99 is not held"),
    "words too many bytes": ({"words": "é" * 2049}, INVALID, "4096 bytes of UTF-8; 4098 came"),
    "unknown key": ({"filter": [condition("size", text="m")]}, INVALID, "this gallery knows `colour`, `count`"),
    "endless key": ({"filter": [condition("k" * 9000, text="m")]}, INVALID, "kkk..."),
    "key with control codes": ({"filter": [condition("a\x1b[31m\n", text="m")]}, INVALID, "`a?[31m?` is unknown"),
    "empty key": ({"filter": [condition("", text="m")]}, INVALID, "is unknown"),
    "wrong type": ({"filter": [condition("count", text="3")]}, INVALID, "holds integer; text `'3'` came"),
    "flag for integer": ({"filter": [condition("count", flag=True)]}, INVALID, "holds integer; flag"),
    "NaN": ({"filter": [condition("price", number=math.nan)]}, INVALID, "holds number"),
    "no value": ({"filter": [pb.Condition(key="colour")]}, INVALID, "`colour` has no value"),
    "key twice": ({"filter": [condition("count", integer=i) for i in (1, 2)]}, INVALID, "is named twice"),
    "17 conditions": ({"filter": [condition("count", integer=1)] * 17}, INVALID, "16 conditions; 17 came"),
    "width": ({"sentence": pack(np.ones((2, 13), np.float32))}, INVALID, "width 13"),
    "9 tokens": ({"sentence": pack(np.ones((9, 12), np.float32))}, INVALID, "9 tokens; between 1 and 8"),
    "0 tokens": ({"sentence": sentence(count=0)}, INVALID, "0 tokens"),
    "count too high": ({"sentence": sentence(count=2**32 - 1)}, INVALID, "tokens"),
    "no encoding": ({"sentence": sentence(encoding=0)}, INVALID, "unknown token encoding 0"),
    "encoding 99": ({"sentence": sentence(encoding=99)}, INVALID, "unknown token encoding 99"),
    "data too short": ({"sentence": sentence(data=b"\0" * 95)}, INVALID, "95 bytes"),
    "data gone": ({"sentence": sentence(data=b"")}, INVALID, "0 bytes"),
    "needless scales": ({"sentence": sentence(scales=b"\0" * 8)}, INVALID, "scales"),
    "tokens NaN": ({"sentence": sentence(data=floats(math.nan))}, INVALID, "must be finite"),
    "tokens infinite": ({"sentence": sentence(data=floats(-math.inf))}, INVALID, "must be finite"),
    "tokens huge": ({"sentence": sentence(data=floats(1e30))}, INVALID, "length"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_question_gets_its_status_and_a_sentence_and_harms_nothing(toy, running, case):
    good = running.search(toy.request())
    changes, status, said = BAD[case]
    with pytest.raises(grpc.RpcError) as caught:
        running.search(toy.request(**changes))
    details = caught.value.details()
    assert (caught.value.code(), said in details) == (status, True), details
    assert len(details) < 600
    assert "Traceback" not in details
    kind = dict(caught.value.trailing_metadata())[KIND_METADATA]
    assert kind == ("BadQuery" if status is INVALID else "SpaceMismatch")
    if status is FAILED:  # the other id is in `said`; ours and the remedy
        assert any(ours in details for ours in (toy.token_space, toy.gallery_space, toy.encoder))
        assert "Install the edge half" in details or "Ask Describe" in details
    assert list(running.search(toy.request()).hits) == list(good.hits)


def test_random_and_truncated_bytes_are_invalid_not_internal(toy, running):
    good = running.search(toy.request())
    whole = toy.request(filter=[condition("count", integer=1)], gallery_space=toy.gallery_space).SerializeToString()
    random = np.random.default_rng(6)
    bodies = [random.bytes(int(n)) for n in random.integers(1, 400, 60)]
    bodies += [whole[:n] for n in range(0, len(whole), 7)]
    bodies += [
        whole[:n] + bytes([whole[n] ^ (1 << int(random.integers(8)))]) + whole[n + 1 :] for n in range(0, len(whole), 5)
    ]
    bodies += [b"\x22\x02\xff\xfe", b"\x1a" * 120, b"\x0a\xff\xff\xff\xff\x7f", b""]  # bad UTF-8, nesting, huge length
    told = set()
    for body in bodies:
        try:
            running.raw(body)
        except grpc.RpcError as error:
            told.add(error.code())
    assert told <= {INVALID, FAILED}
    with pytest.raises(grpc.RpcError, match=r"not a valid pocketlens\.v1\.SearchRequest message"):
        running.raw(b"\xff" * 10)
    assert list(running.search(toy.request()).hits) == list(good.hits)


def test_unknown_fields_are_ignored_so_that_newer_clients_may_come(toy, running):
    newer = toy.request().SerializeToString() + b"\xfa\x7f\x03abc"
    assert pb.SearchReply.FromString(running.raw(newer)).hits


def test_a_fault_of_ours_is_internal_says_nothing_of_the_inside_and_is_logged(toy, running, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret inside")

    monkeypatch.setattr(Composer, "finish", broken)
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.RpcError) as caught:
        running.search(toy.request())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.details()
    assert "secret inside" in caplog.text
    monkeypatch.undo()
    assert running.search(toy.request()).hits


def test_the_log_tells_neither_words_nor_tokens(toy, running, caplog):
    with caplog.at_level(logging.DEBUG):
        running.search(toy.request(words="dotted shoe"))
    (line,) = [record.getMessage() for record in caplog.records if record.name == service_module.__name__]
    assert "shoe" not in line
    assert toy.token_space in line
    assert "k=4" in line


def test_a_gallery_and_a_bundle_that_do_not_belong_together_do_not_start(composer, make_toy, pictures, tmp_path):
    other = make_toy(tmp_path / "other", gallery_space="gs-" + "1" * 16)
    index(pictures, tmp_path / "g", other.bundle)
    both = f"{other.gallery_space}.*{composer.manifest.gallery_space}"
    with EmbeddedGallery.open(tmp_path / "g") as gallery, pytest.raises(SpaceMismatch, match=both):
        Service(composer, gallery)


def test_an_empty_gallery_does_not_start(toy, composer, tmp_path):
    with (
        EmbeddedGallery.create(
            tmp_path / "g", dim=toy.dim, vectors=["original", "union"], gallery_space=toy.gallery_space
        ) as gallery,
        pytest.raises(GalleryError, match="holds no pictures"),
    ):
        Service(composer, gallery)


def test_a_gallery_of_original_vectors_answers_zero_shot_and_names_it(
    toy, composer, make_toy, pictures, tmp_path, serve
):
    plain = make_toy(tmp_path / "plain", targets=("original",))
    index(pictures, tmp_path / "g", plain.bundle)
    with EmbeddedGallery.open(tmp_path / "g") as gallery, serve(Service(composer, gallery)) as running:
        assert running.search(toy.request()).mode == pb.MODE_ZERO_SHOT
        with pytest.raises(grpc.RpcError, match="mode tuned is not held by this gallery; it holds zero-shot"):
            running.search(toy.request(mode=pb.MODE_TUNED))
        assert list(running.stub.Describe(pb.DescribeRequest()).modes) == [pb.MODE_ZERO_SHOT]


@pytest.mark.skipif(not os.path.exists("/proc"), reason="counts threads and files in /proc")
def test_a_hundred_questions_leave_no_file_open(toy, running):
    running.search(toy.request())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        running.search(toy.request())
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (True, pb.Value(flag=True)),
        ("2026-01-31T12:00:00Z", pb.Value(text="2026-01-31T12:00:00Z")),
        (["ä", "b"], pb.Value(text='["ä", "b"]')),
        ({"lat": 1.5, "lon": 2}, pb.Value(text='{"lat": 1.5, "lon": 2}')),
    ],
)
def test_payload_that_the_wire_has_no_type_for_goes_as_json_text(value, sent):
    assert service_module._value(value) == sent
