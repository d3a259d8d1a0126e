"""A student learns on the very rows that the service reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pocketlens_cloud.compose import _Layout
from pocketlens_cloud.tokenizer import Tokenizer as CloudTokenizer
from pocketlens_cloud.wording import cleaned
from pocketlens_training.reading import Reader, RowMaker, reader_of
from pocketlens_training.recipe import PROMPTS
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.vocabulary import ALWAYS, BOS, EOS, LAYOUT, SLOT, UNK, word_tokenizer
from pocketlens_wire.manifest import TextLayout
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

CONTEXT = 24
K = 3
WORDS = [
    "", "red", "but in RED", "  two   spaces ", "an unheardof word", "{sentence}", "a {sentence} of {words}",
    "<slot> <bos> <eos> <pad> <unk>", "red<slot>red", "caf\u00e9 cafe\u0301", "tab\there\x00", ",", "don't",
    "{words}", "$20 & 50%",
]  # fmt: skip


def sentence_pieces() -> tuple[Tokenizer, TextLayout]:
    """As SigLIP's: pieces that know where a word begins, behind cleaning that takes punctuation away."""
    pieces = Tokenizer(
        models.Unigram([("<unk>", -9.0), ("</s>", 0.0), *((c, -4.0) for c in "\u2581abcdefghijklmnopqrstuvwxyz,")], 0)
    )
    pieces.normalizer = normalizers.NFKC()
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.add_special_tokens(["</s>"])
    clean = ["ftfy", "html", "punctuation", "lower", "spaces"]
    return pieces, TextLayout(
        begin=[], end=[1], pad=1, slot=1, special=[1], unknown=0, fixed_length=True, clean=clean
    )  # fmt: skip


def word_level() -> tuple[Tokenizer, TextLayout]:
    known = {*ALWAYS, "but", "in", "red", "two", "spaces", "sentence", "words", "here", "cafe", "caf\u00e9"}
    return word_tokenizer(sorted(known)), LAYOUT


@pytest.fixture(params=[word_level, sentence_pieces], ids=["words", "sentence pieces"])
def both(request, tmp_path: Path, cpu):
    """Training's reader and the cloud's layout of one tokenizer."""
    tokenizer, layout = request.param()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    maker = RowMaker(tokenizer, layout, 64)
    reader = Reader(torch.nn.Module(), maker, PROMPTS, cpu)  # type: ignore[arg-type]
    manifest = SimpleNamespace(prompts=PROMPTS, text=layout, context=64)
    theirs = _Layout(CloudTokenizer(tmp_path / "tokenizer.json", layout), manifest)  # type: ignore[arg-type]
    return reader, theirs, lambda words: cleaned(words, layout.clean).strip()


def same(maker: RowMaker, text: str, tokens: int, row) -> None:
    built = maker.rows([text], tokens=tokens)
    end = int(built.end[0])
    assert built.token_ids[0, : end + 1].tolist() == list(row.ids)
    length = int(built.sentence_length[0])
    assert length == (0 if row.sentence is None else len(row.sentence))
    if length:
        assert int(built.sentence_start[0]) == row.start


@pytest.mark.parametrize("words", WORDS)
def test_rows_are_the_services_own(both, words: str) -> None:
    reader, theirs, clean = both
    sentence = np.zeros((K, 8), np.float32)
    said = clean(words)
    same(reader.maker, reader.words(words), 0, theirs.words(said))
    same(reader.maker, reader.alone, K, theirs.picture(sentence))
    if said:
        same(reader.maker, reader.composed(words), K, theirs.composed(sentence, said))
    else:
        same(reader.maker, reader.composed(words), K, theirs.picture(sentence))


def maker_of(context: int = CONTEXT) -> RowMaker:
    tokenizer, layout = word_level()
    return RowMaker(tokenizer, layout, context)


def test_typed_placeholders_stay_words(cpu) -> None:
    reader = Reader(torch.nn.Module(), maker_of(64), PROMPTS, cpu)  # type: ignore[arg-type]
    built = reader.maker.rows([reader.composed("{sentence} <slot> $20")], tokens=4)
    ids = built.token_ids[0].tolist()
    start = int(built.sentence_start[0])
    assert ids[start : start + 4] == [SLOT] * 4
    assert ids.count(SLOT) == 4
    assert ids.count(EOS) == 1
    assert UNK in ids


def test_rows_of_many_lengths_are_padded_and_know_their_ends() -> None:
    built = maker_of().rows(["a photo of {sentence}", "", "a photo"], tokens=2)
    assert built.token_ids[:, 0].tolist() == [BOS] * 3
    assert built.end.tolist() == [6, 1, 3]
    assert [row[end] for row, end in zip(built.token_ids.tolist(), built.end.tolist(), strict=True)] == [EOS] * 3
    assert built.sentence_length.tolist() == [2, 0, 0]
    assert built.token_ids[1, 2:].tolist() == [0] * 5


@pytest.mark.parametrize("k", [1, 4, 16])
def test_too_long_a_text_loses_its_end_and_keeps_its_sentence(k: int) -> None:
    built = maker_of().rows(["a photo of {sentence}, " + "red " * 60], tokens=k)
    ids = built.token_ids[0].tolist()
    assert len(ids) == CONTEXT and ids[-1] == EOS and int(built.end[0]) == CONTEXT - 1
    start = int(built.sentence_start[0])
    assert ids[start : start + k] == [SLOT] * k
    assert int(built.sentence_length[0]) == k
    assert ids[0] == BOS


def test_unknown_words_are_known_to_be_so() -> None:
    maker = maker_of()
    assert maker.unknown("a zebra") and not maker.unknown("a RED photo")


@torch.no_grad()
def test_a_reader_gives_what_the_tower_gives_with_the_sentence_in_it(little: Path, cpu) -> None:
    teacher = load_teacher(f"run:{little / 'teacher'}")
    reader = reader_of(teacher, cpu)
    red = teacher.tokenizer.encode("red thing", add_special_tokens=False).ids
    sentence = teacher.text.words(torch.tensor([red]))
    said = reader.unit([reader.composed("in blue")], sentence)
    typed = reader.unit(["a photo of red thing, in blue"])
    assert torch.allclose(said, typed, atol=1e-5)
    assert torch.allclose(said.norm(dim=1), torch.ones(1))
    states = reader.states(["a photo", "a photo of red thing"])
    at = states["end"][0]
    assert torch.allclose(states["states"][0, at], reader.raw(["a photo"])[0], atol=1e-5)
    assert states["mask"].sum(1).tolist() == [4, 7]
