"""Every question over the real gRPC stack: good ones answered as numpy would, bad ones refused in plain words."""

import logging
import math
import os
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
from pocketlens_cloud import service as service_module
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Point
from pocketlens_cloud.indexing.ingest import content_id, index, list_pictures
from pocketlens_cloud.rerank import RERANK, rerank
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
    "65 conditions": (
        {"filter": [condition(f"k{i}", integer=1) for i in range(65)]},
        INVALID,
        "may have 64 conditions",
    ),
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


# --- more than equal values, words with weights, pages


def clause(key: str = "", **test) -> pb.Clause:
    return pb.Clause(condition=pb.Condition(key=key, **test))


def values(*given: str | int) -> pb.Values:
    return pb.Values(values=[pb.Value(**{"text" if isinstance(each, str) else "integer": each}) for each in given])


def inner(**fields) -> pb.Clause:
    return pb.Clause(filter=pb.Filter(**fields))


FILTERS = {
    "any of": (pb.Filter(all_of=[clause("colour", any_of=values("red", "blue"))]), lambda p: p["colour"] != "green"),
    "any of numbers": (pb.Filter(all_of=[clause("count", any_of=values(1, 3))]), lambda p: p["count"] in (1, 3)),
    "none of": (pb.Filter(all_of=[clause("colour", none_of=values("red"))]), lambda p: p["colour"] != "red"),
    "between": (
        pb.Filter(all_of=[clause("price", between=pb.Between(above=2, most=5))]),
        lambda p: 2 < p["price"] <= 5,
    ),
    "from, below": (
        pb.Filter(all_of=[clause("count", between=pb.Between(least=1, below=3))]),
        lambda p: 1 <= p["count"] < 3,
    ),
    "missing": (pb.Filter(all_of=[clause("colour", missing=pb.Missing())]), lambda p: False),
    "not missing": (pb.Filter(none_of=[clause("colour", missing=pb.Missing())]), lambda p: True),
    "two of three": (
        pb.Filter(
            any_of=[clause("colour", any_of=values("red")), clause("sold", equals=pb.Value(flag=True)),
                    clause("count", any_of=values(0, 1))],
            at_least=2,
        ),
        lambda p: (p["colour"] == "red") + p["sold"] + (p["count"] < 2) >= 2,
    ),
    "one in another": (
        pb.Filter(
            all_of=[clause("sold", equals=pb.Value(flag=True))],
            any_of=[inner(all_of=[clause("colour", any_of=values("red")), clause("count", any_of=values(0))]),
                    inner(none_of=[clause("price", between=pb.Between(least=5))])],
        ),
        lambda p: p["sold"] and ((p["colour"] == "red" and p["count"] == 0) or p["price"] < 5),
    ),
}  # fmt: skip


def payload_of(hit: pb.Hit) -> dict:
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in hit.payload.items()}


@pytest.mark.parametrize("case", FILTERS)
def test_a_filter_keeps_just_what_it_says(toy, running, case):
    tree, holds = FILTERS[case]
    everything = [(hit.id, payload_of(hit)) for hit in running.search(toy.request(top=40)).hits]
    assert len(everything) == 40
    kept = running.search(toy.request(top=40, where=tree)).hits
    assert [hit.id for hit in kept] == [point for point, payload in everything if holds(payload)]


def test_ids_and_both_kinds_of_condition_hold_together(toy, running):
    best = [hit.id for hit in running.search(toy.request(top=9)).hits]
    tree = pb.Filter(all_of=[clause(has_id=pb.Ids(ids=best))])
    assert [hit.id for hit in running.search(toy.request(top=40, where=tree)).hits] == best
    both = running.search(toy.request(top=40, where=tree, filter=[condition("sold", flag=True)])).hits
    assert {hit.id for hit in both} < set(best)
    assert all(hit.payload["sold"].flag for hit in both)


@pytest.mark.parametrize("mode", [pb.MODE_ZERO_SHOT, pb.MODE_TUNED])
def test_words_with_weights_move_the_query_as_numpy_would(toy, running, seen, mode):
    tokens, ids = toy.sentence(5), seen[0]
    nothing = toy.text([])

    def asked(words: list[str], *, alone: bool = False) -> np.ndarray:
        said = toy.text(words) if words else nothing
        if alone:
            composed, picture = said, nothing
        else:
            picture = toy.text([*PHOTO, tokens])
            composed = toy.text([*PHOTO, tokens, ",", *words]) if words else picture
        return composed if mode == pb.MODE_ZERO_SHOT else toy.query(composed, picture, said)

    query = asked(["in", "red", ",", "smaller"])  # what has weight 1 is one text
    query = query + 0.5 * (asked(["on", "grass"]) - asked([]))  # more of it: beside the picture
    query = query - 1.0 * (asked(["dotted"], alone=True) - asked([], alone=True))  # not this: on the words alone
    query /= np.linalg.norm(query)
    scores = seen[1]["original" if mode == pb.MODE_ZERO_SHOT else "union"] @ query
    best = np.argsort(-scores)[:7]
    said = [("smaller", None), ("on grass", 0.5), ("dotted", -1.0), ("zebra", 0.0)]
    modifiers = [pb.Modifier(words=words, weight=weight) for words, weight in said]
    changes = {"sentence": pack(tokens, Encoding.F32), "mode": mode, "top": 7}
    reply = running.search(toy.request(words="in red", modifiers=modifiers, **changes))
    assert [hit.id for hit in reply.hits] == [ids[i] for i in best]
    assert np.abs([hit.score for hit in reply.hits] - scores[best]).max() < COSINE
    assert list(reply.notes) == []  # weight 0 is as if the words were not there, unknown ones too
    without = running.search(toy.request(words="in red", modifiers=modifiers[:3], **changes))
    assert list(without.hits) == list(reply.hits)


def test_modifiers_that_cancel_each_other_out_say_so(toy, running):
    less = [pb.Modifier(words="red", weight=weight) for weight in (2.0, -2.0)]
    same = running.search(toy.request(sentence=None, encoder=None, words="hat", modifiers=less))
    plain = running.search(toy.request(sentence=None, encoder=None, words="hat"))
    assert [hit.id for hit in same.hits] == [hit.id for hit in plain.hits]
    with pytest.raises(grpc.RpcError, match="the query is empty"):
        running.search(
            toy.request(sentence=None, encoder=None, words="", modifiers=[pb.Modifier(words="red", weight=0)])
        )


def test_pages_fit_together_and_end(toy, running):
    whole = list(running.search(toy.request(top=40)).hits)
    pages = [running.search(toy.request(top=15, skip=skip)) for skip in (0, 15, 30, 45)]
    assert [len(page.hits) for page in pages] == [15, 15, 10, 0]
    assert [hit for page in pages for hit in page.hits] == whole
    assert len({page.generation for page in pages}) == 1


def test_a_least_score_cuts_off(toy, running):
    whole = running.search(toy.request(top=40)).hits
    bound = (whole[9].score + whole[10].score) / 2
    assert list(running.search(toy.request(top=40, least_score=bound)).hits) == list(whole[:10])
    assert len(running.search(toy.request(top=40, least_score=-1)).hits) == 40


def test_groups_say_what_they_are_groups_of(toy, running):
    whole = running.search(toy.request(top=40)).hits
    grouped = running.search(toy.request(top=2, group_by="colour", group_size=3, payload=pb.Projection(keys=["count"])))
    colours = list(dict.fromkeys(hit.payload["colour"].text for hit in whole))[:2]
    wanted = [hit for colour in colours for hit in [h for h in whole if h.payload["colour"].text == colour][:3]]
    assert {hit.id: hit.group.text for hit in grouped.hits} == {hit.id: hit.payload["colour"].text for hit in wanted}
    assert [hit.score for hit in grouped.hits] == sorted((hit.score for hit in grouped.hits), reverse=True)
    assert {tuple(hit.payload) for hit in grouped.hits} == {("count",)}
    assert not whole[0].HasField("group")


def test_a_hit_whose_group_key_is_gone_since_it_was_ranked_is_left_out(toy, service, gallery, monkeypatch):
    question = service.check(toy.request(top=3, group_by="colour"))
    _best, *others = service.answer(question).hits
    search = type(gallery).search

    def changed(self, asked):
        first, *rest = search(self, asked)
        return [replace(first, payload={}), *rest]

    monkeypatch.setattr(type(gallery), "search", changed)
    assert [hit.id for hit in service.answer(question).hits] == [hit.id for hit in others]


def test_only_the_payload_asked_for_comes_back(toy, running):
    whole = running.search(toy.request())
    some = running.search(toy.request(payload=pb.Projection(keys=["colour", "price"])))
    none = running.search(toy.request(payload=pb.Projection()))
    assert [hit.id for hit in some.hits] == [hit.id for hit in none.hits] == [hit.id for hit in whole.hits]
    assert {tuple(sorted(hit.payload)) for hit in some.hits} == {("colour", "price")}
    assert not any(hit.payload for hit in none.hits)


def test_the_best_are_sorted_anew_where_that_is_asked(toy, running, seen):
    ids, vectors = seen
    plain = running.search(toy.request(top=40))
    both = toy.text([*PHOTO, toy.sentence(0), ",", "in", "red"])
    query = toy.query(both, toy.text([*PHOTO, toy.sentence(0)]), toy.text(["in", "red"]))
    first = [ids.index(hit.id) for hit in plain.hits]
    scores = np.array([hit.score for hit in plain.hits], np.float32)
    places, _ = rerank(query, vectors["union"][first], scores)
    anew = running.search(toy.request(top=40, rerank=True))
    assert [hit.id for hit in anew.hits] == [plain.hits[place].id for place in places]
    assert [hit.id for hit in anew.hits] != [hit.id for hit in plain.hits]
    assert {hit.id: hit.score for hit in anew.hits} == {hit.id: hit.score for hit in plain.hits}  # cosines still
    assert (anew.reranked, plain.reranked) == (RERANK.depth, 0)
    pages = [running.search(toy.request(top=10, skip=skip, rerank=True)) for skip in (0, 10, 20, 30)]
    assert [hit.id for page in pages for hit in page.hits] == [hit.id for hit in anew.hits]
    few = running.search(toy.request(top=3, least_score=scores[4], rerank=True))
    assert (few.reranked, len(few.hits)) == (5, 3)
    assert running.search(toy.request(least_score=1, rerank=True)).reranked == 0


def test_lists_and_places_come_back_as_such(toy, composer, serve, tmp_path, seen):
    ids, vectors = seen
    held = {"tags": ["new", "red"], "sizes": [38, 40], "at": {"lat": 48.2, "lon": 16.4}}
    point = Point(ids[0], {name: vectors[name][0] for name in ("original", "union")}, held)
    made = EmbeddedGallery.create(
        tmp_path / "g", dim=toy.dim, vectors=["original", "union"], gallery_space=toy.gallery_space
    )
    with made as gallery:
        gallery.upsert([point])
        with serve(Service(composer, gallery)) as running:
            near = pb.Condition(key="at", near=pb.Near(latitude=48, longitude=16, radius_m=100_000))
            tree = pb.Filter(all_of=[clause("tags", any_of=values("red")), pb.Clause(condition=near)])
            (hit,) = running.search(toy.request(where=tree)).hits
    assert hit.payload["tags"].several == values("new", "red")
    assert hit.payload["sizes"].several == values(38, 40)
    assert hit.payload["at"].place == pb.Place(latitude=48.2, longitude=16.4)


def nested(depth: int) -> pb.Filter:
    tree = pb.Filter(all_of=[clause("count", any_of=values(1))])
    for _ in range(depth - 1):
        tree = pb.Filter(all_of=[pb.Clause(filter=tree)])
    return tree


def only(**test) -> dict:
    return {"where": pb.Filter(all_of=[pb.Clause(condition=pb.Condition(**test))])}


LATER = pb.Condition.FromString(pb.Condition(key="count").SerializeToString() + b"\xfa\x07\x01x")  # a test of field 127
COUNTED = clause("count", any_of=values(1))

HOSTILE = {
    "7 deep": ({"where": nested(7)}, "may lie 6 deep"),
    "45 deep": ({"where": nested(45)}, "may lie 6 deep"),
    "1,000 clauses": ({"where": pb.Filter(any_of=[COUNTED] * 1000)}, "may have 64 conditions"),
    "64 and 1": (
        {"where": pb.Filter(any_of=[COUNTED] * 64), "filter": [condition("count", integer=1)]},
        "may have 64 conditions",
    ),
    "257 values": (only(key="count", any_of=values(*range(257))), "1 to 256; 257 came"),
    "no values": (only(key="count", any_of=values()), "1 to 256; 0 came"),
    "mixed values": (only(key="count", any_of=values(1, "red")), "texts alone or integers alone"),
    "flags listed": (only(key="sold", any_of=pb.Values(values=[pb.Value(flag=True)])), "texts alone"),
    "values of another type": (only(key="count", none_of=values("red")), "holds integer"),
    "too much text": (only(key="colour", any_of=values(*["x" * 400] * 50)), "16,384 bytes"),
    "a condition of a later version": ({"where": pb.Filter(all_of=[pb.Clause(condition=LATER)])}, "no test that this"),
    "a clause of nothing": ({"where": pb.Filter(all_of=[pb.Clause()])}, "neither a condition nor a filter"),
    "an empty filter inside": ({"where": pb.Filter(any_of=[inner()])}, "is empty"),
    "three of two": (
        {"where": pb.Filter(any_of=[clause("count", any_of=values(1))] * 2, at_least=3)}, "at least 3 of the 2",
    ),
    "range without bounds": (only(key="price", between=pb.Between()), "needs a bound"),
    "range NaN": (only(key="price", between=pb.Between(least=math.nan)), "must be finite; nan came"),
    "range of text": (only(key="colour", between=pb.Between(least=1)), "holds text"),
    "words in a number": (only(key="price", says="red"), "holds number"),
    "no words": (only(key="colour", says="  "), "has no words"),
    "place NaN": (only(key="colour", near=pb.Near(latitude=math.nan, radius_m=1)), "latitude is -90 to 90"),
    "place beyond the pole": (only(key="colour", near=pb.Near(latitude=91, radius_m=1)), "latitude is -90 to 90"),
    "place without radius": (only(key="colour", near=pb.Near(latitude=1)), "a radius is above 0"),
    "place of text": (only(key="colour", near=pb.Near(latitude=1, radius_m=1)), "holds text"),
    "id of letters": (only(has_id=pb.Ids(ids=["z" * 32])), "is not 32 hex digits"),
    "id under a key": (only(key="colour", has_id=pb.Ids(ids=["0" * 32])), "under no key"),
    "unknown key inside": (
        {"where": pb.Filter(any_of=[inner(none_of=[clause("size", missing=pb.Missing())])])}, "is unknown",
    ),
    "weight NaN": ({"modifiers": [pb.Modifier(words="red", weight=math.nan)]}, "weight is -2 to 2; nan came"),
    "weight 3": ({"modifiers": [pb.Modifier(words="red", weight=3)]}, "weight is -2 to 2; 3.0 came"),
    "nine modifiers": ({"modifiers": [pb.Modifier(words="red")] * 8}, "8 modifiers, words counted; 9 came"),
    "words too many bytes": ({"modifiers": [pb.Modifier(words="é" * 2049)]}, "4096 bytes of UTF-8"),
    "only what is unwanted": (
        {"sentence": None, "encoder": None, "words": None, "modifiers": [pb.Modifier(words="red", weight=-1)]},
        "the query is empty",
    ),
    "page too deep": ({"skip": 1996}, "reach at most 2000 hits; 1996 and 5 came"),
    "page beyond numbers": ({"skip": 2**32 - 1}, "reach at most 2000 hits"),
    "groups too many": ({"group_by": "colour", "skip": 96}, "reach at most 100 groups"),
    "groups too large": ({"group_by": "colour", "group_size": 201}, "more than 1000 hits"),
    "groups of numbers": ({"group_by": "price"}, "holds number"),
    "groups of nothing known": ({"group_by": "size"}, "group key `size` is unknown"),
    "group size alone": ({"group_size": 2}, "group_by is missing"),
    "equal to several": (
        only(key="count", equals=pb.Value(several=values(1, 2))), "a value to be equal to is one text",
    ),
    "groups sorted anew": ({"group_by": "colour", "rerank": True}, "does not go with group_by"),
    "score NaN": ({"least_score": math.nan}, "least_score must be -1 to 1"),
    "score 2": ({"least_score": 2}, "least_score must be -1 to 1"),
    "unknown payload": ({"payload": pb.Projection(keys=["size"])}, "payload key `size` is unknown"),
    "payload of nothing": ({"payload": pb.Projection(keys=[""])}, "is unknown"),
    "payload without end": ({"payload": pb.Projection(keys=["colour"] * 257)}, "256 keys; 257 came"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_filter_page_or_weight_is_refused_in_a_sentence(toy, running, case):
    changes, said = HOSTILE[case]
    with pytest.raises(grpc.RpcError) as caught:
        running.search(toy.request(**changes))
    assert (caught.value.code(), said in caught.value.details()) == (INVALID, True), caught.value.details()
    assert len(caught.value.details()) < 600
    assert dict(caught.value.trailing_metadata())[KIND_METADATA] == "BadQuery"


def test_every_bound_is_told(running):
    told = running.stub.Describe(pb.DescribeRequest())
    for name in (
        "modifiers",
        "filter_depth",
        "values",
        "filter_bytes",
        "reach",
        "groups",
        "turns",
        "conversation_bytes",
    ):
        assert getattr(told, f"max_{name}") == getattr(limits, f"MAX_{name.upper()}") > 0
    assert (told.max_idle_s, told.max_conditions) == (limits.MAX_IDLE_S, limits.MAX_CONDITIONS)
