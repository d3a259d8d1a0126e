"""Words and sentence to a query vector, against a numpy oracle of the toy towers."""

import numpy as np
import onnx
import pytest
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.tokenizer import Tokenizer
from pocketlens_cloud.towers import MAX_PADDING, MAX_ROWS, TextTower, buckets, packs
from pocketlens_cloud.wording import STEPS, cleaned
from pocketlens_wire.errors import BadBundle, BadQuery
from pocketlens_wire.manifest import CLEANING, PACKS, TextLayout, read_cloud, resolve_half
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

CLOSE = 2e-6  # float32 sums of a dozen products of order 1; a misplaced sentence changes features by about 1
PHOTO = ["a", "photo", "of"]


def test_zero_shot_is_the_text_tower_over_prompt_sentence_and_words(toy, composer):
    sentence = toy.sentence(1)
    cases = {
        "in red": [*PHOTO, sentence, ",", "in", "red"],
        "": [*PHOTO, sentence],
    }
    for words, pieces in cases.items():
        answer = composer.compose(sentence, words, "zero-shot")
        assert answer.vector_name == "original"
        assert np.abs(answer.vector - toy.text(pieces)).max() < CLOSE
    alone = composer.compose(None, "in red", "zero-shot")
    assert np.abs(alone.vector - toy.text(["in", "red"])).max() < CLOSE


def test_the_tolerance_would_show_a_sentence_one_place_off(toy, composer):
    sentence = toy.sentence(1)
    answer = composer.compose(sentence, "", "zero-shot")
    assert np.abs(answer.vector - toy.text([*PHOTO[:2], sentence, "of"])).max() > 1000 * CLOSE


def test_tuned_puts_the_feature_of_nothing_where_picture_or_words_are_missing(toy, composer):
    sentence, nothing = toy.sentence(2), toy.text([])
    both = toy.text([*PHOTO, sentence, ",", "in", "red"])
    picture, words = toy.text([*PHOTO, sentence]), toy.text(["in", "red"])
    for ask, wanted in {
        "both": toy.query(both, picture, words),
        "picture": toy.query(picture, picture, nothing),
        "words": toy.query(words, nothing, words),
    }.items():
        answer = composer.compose(None if ask == "words" else sentence, "" if ask == "picture" else "in red", "tuned")
        assert answer.vector_name == "union"
        assert np.abs(answer.vector - wanted).max() < CLOSE, ask


@pytest.mark.parametrize("mode", ["zero-shot", "tuned"])
def test_a_batch_gives_each_query_what_it_gets_alone(toy, composer, mode):
    random = np.random.default_rng(4)
    asks = []
    for seed in range(70):  # more than one bucket
        sentence = toy.sentence(seed, k=1 + seed % 8) if seed % 3 else None
        words = " ".join(random.choice(["red", "shoe", "on", "grass"], size=random.integers(0, 12)))
        asks.append((sentence, words if sentence is not None else words + " hat"))
    together = composer.compose_batch(asks, mode)
    alone = np.stack([composer.compose(sentence, words, mode).vector for sentence, words in asks])
    assert np.abs(together - alone).max() < CLOSE
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < CLOSE


def test_one_querys_rows_share_a_run_and_thousands_fall_apart_by_length():
    assert list(buckets([])) == []
    assert list(buckets([40, 9, 32])) == [[1, 2, 0]]
    lengths = list(np.random.default_rng(5).integers(3, 77, 1000))
    groups = list(buckets(lengths))
    assert sorted(i for group in groups for i in group) == list(range(1000))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) <= MAX_ROWS
        assert sum(longest - lengths[i] for i in group) <= MAX_PADDING


def test_a_tower_without_padding_takes_rows_as_they_stand():
    assert list(packs([])) == []
    assert list(packs([40, 9, 32, 50, 90, 3], most_rows=3, most_tokens=81)) == [[0, 1, 2], [3], [4], [5]]
    assert [len(group) for group in packs([77] * 100)] == [MAX_ROWS, 100 - MAX_ROWS]


def test_a_graph_says_itself_that_it_reads_no_padding(toy, tmp_path):
    manifest = read_cloud(toy.bundle)
    file = manifest.text_tower["fp32"].file
    model = onnx.load(resolve_half(toy.bundle, "cloud") / file)
    assert not TextTower(resolve_half(toy.bundle, "cloud"), manifest).packs
    onnx.helper.set_model_props(model, {PACKS: "yes"})
    onnx.save(model, tmp_path / file)
    assert TextTower(tmp_path, manifest).packs


def test_an_empty_query_is_refused(composer):
    for words in ("", "   ", "\n\0\t"):
        with pytest.raises(BadQuery, match="the query is empty"):
            composer.compose(None, words, "tuned")


SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<slot>")
LAYOUT = TextLayout(
    begin=[1], end=[2], pad=0, slot=4, special=[0, 1, 2, 4], unknown=3, fixed_length=False, clean=["plain", "spaces"]
)


def test_words_are_cleaned():
    def clean(words):
        return cleaned(words, LAYOUT.clean)

    assert clean("  in\tred\n\x00\x1b[31m ") == "in red [31m"
    assert clean("cafe\u0301") == "caf\u00e9"
    assert clean("\u00a0red\u2028hat") == "red hat"
    assert clean("\U0001f469\u200d\U0001f33e") == "\U0001f469\u200d\U0001f33e"  # a joiner is no control character


def test_words_are_cleaned_as_open_clip_and_siglip_do():
    clip = ("ftfy", "html", "spaces", "lower")
    assert cleaned("A &amp;amp; B\u00a0&lt;C&gt;  ", clip) == "a & b <c>"
    assert cleaned("schÃ¶n", clip) == "schön"
    assert cleaned("Two_hats, please!", ("ftfy", "html", "punctuation", "lower", "spaces")) == "two hats please"
    assert set(STEPS) == set(CLEANING)  # what a manifest may name is what the cloud can do


def test_long_words_are_cut_at_a_word_and_the_asker_is_told(toy, composer):
    sentence = toy.sentence(3)
    room = toy.context - 2 - 4 - len(PHOTO) - 1  # bos, eos; four tokens; prompt; its comma
    many = ["red", "hat"] * 30
    answer = composer.compose(sentence, " ".join(many), "zero-shot")
    assert answer.words_used.split() == many[:room]
    assert list(answer.notes) == [
        f"The words were longer than the text tower reads: the first {room} of 60 words were used."
    ]
    assert np.abs(answer.vector - toy.text([*PHOTO, sentence, ",", *many[:room]])).max() < CLOSE
    exact = composer.compose(sentence, " ".join(many[:room]), "tuned")
    assert (exact.words_used, exact.notes) == ("", ())
    alone = composer.compose(None, " ".join(many), "tuned")
    assert alone.words_used.split() == many[: toy.context - 2]


def test_a_word_is_never_cut_in_the_middle_unless_it_fills_everything(composer):
    hyphened = "red-red-red hat"  # five tokens and one
    words = " ".join([hyphened] * 10)
    used = composer.compose(None, words, "zero-shot").words_used
    assert words.startswith(used)
    assert words[len(used)] == " "
    endless = "red-" * 200
    used = composer.compose(None, endless, "zero-shot").words_used
    assert 0 < len(used) < len(endless)
    assert endless.startswith(used)


def test_unknown_words_are_named_once_each_and_not_all_of_them(composer):
    (note,) = composer.compose(None, "Red zebra zebra quokka", "zero-shot").notes
    assert note == "The text tower does not know: `zebra`, `quokka`."
    (note,) = composer.compose(None, " ".join(f"w{i}" for i in range(9)), "zero-shot").notes
    assert note.endswith("`w4` and 4 more.")
    (note,) = composer.compose(None, "z" * 4000, "zero-shot").notes
    assert len(note) < 120


@pytest.mark.parametrize(
    "typed", ["<slot>", "<bos>", "red <eos> hat", "$20", "{sentence}", "{words} {sentence}", "<pad>"]
)
def test_nothing_a_user_types_becomes_a_special_id_or_moves_the_sentence(toy, composer, typed):
    tokenizer = Tokenizer(toy.bundle / "cloud" / "tokenizer.json", LAYOUT)
    special = {toy.id(name) for name in SPECIAL} - {toy.id("<unk>")}
    assert special.isdisjoint(tokenizer.ids(typed))
    sentence = toy.sentence(6)
    pieces = (
        typed.replace("<", "< ").replace(">", " > ").replace("$", "$ ").replace("{", "{ ").replace("}", " }").split()
    )
    known = [
        piece if piece in ("<", ">", "$", "20", "slot", "bos", "eos", "red", "hat") else "<unk>" for piece in pieces
    ]
    answer = composer.compose(sentence, typed, "zero-shot")
    assert np.abs(answer.vector - toy.text([*PHOTO, sentence, ",", *known])).max() < CLOSE


def test_a_vocabulary_that_holds_the_slot_as_a_word_gives_unknown_instead(tmp_path):
    library = Library(models.WordLevel({name: i for i, name in enumerate((*SPECIAL, "red"))}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # leaves "<slot>" in one piece
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", LAYOUT)
    assert tokenizer.ids("red <slot> <bos>") == [5, 3, 3]
    assert tokenizer.unknown("red <slot>") == ["<slot>"]


def test_a_tokenizer_without_its_special_tokens_is_refused(tmp_path):
    Library(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>")).save(str(tmp_path / "t.json"))
    with pytest.raises(BadBundle, match="lacks the ids 2, 3, 4"):
        Tokenizer(tmp_path / "t.json", LAYOUT)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(BadBundle, match="not a tokenizer"):
        Tokenizer(tmp_path / "t.json", LAYOUT)


def test_a_bundle_without_heads_composes_zero_shot_only(make_toy, tmp_path):
    composer = Composer.load(make_toy(tmp_path / "plain", targets=("original",)).bundle)
    assert composer.modes == ["zero-shot"]
    with pytest.raises(BadQuery, match="mode tuned is not in bundle toy; it has zero-shot"):
        composer.compose(None, "red", "tuned")


def test_a_flipped_byte_and_swapped_graphs_are_refused(make_toy, tmp_path):
    toy = make_toy(tmp_path / "flipped")
    graph = toy.bundle / "cloud" / "text_tower.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BadBundle, match=r"text_tower\.onnx"):
        Composer.load(toy.bundle)


def test_words_of_every_script_and_shape_compose(composer):
    for words in ("\u202eder", "e" + "\u0301" * 2000, "&amp; <b>", "红色的鞋子" * 50, "\U0001f45f" * 300):
        vector = composer.compose(None, words, "tuned").vector
        assert np.isfinite(vector).all()
