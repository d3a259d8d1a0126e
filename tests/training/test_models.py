"""The sentence goes where it should, and the pieces keep their promises."""

from __future__ import annotations

import pytest
import torch
from pocketlens_samples.language import vocabulary
from pocketlens_training.cost import multiply_adds, parameters
from pocketlens_training.heads import QueryHead, TargetHead
from pocketlens_training.losses import contrast, without
from pocketlens_training.recipe import TINY, Recipe
from pocketlens_training.student import Student, TokenLearner
from pocketlens_training.text import EOS, SLOT, UNK, build_tokenizer, composed_prompt, rows
from pocketlens_training.towers import ImageTower, TextTower


@pytest.fixture(scope="module")
def tower() -> TextTower:
    torch.manual_seed(1)
    return TextTower(50, 32, 64, 2, 16).eval()


@torch.no_grad()
def test_a_sentence_of_word_embeddings_equals_the_words(tower: TextTower) -> None:
    plain = torch.tensor([[1, 9, 10, 11, 12, 2]])
    none = torch.zeros(1)
    zero, end = torch.zeros(1, dtype=torch.int64), torch.tensor([5])
    as_words = tower(plain, torch.zeros(1, 1, 64), zero, zero, end)
    slotted = torch.tensor([[1, 9, SLOT, SLOT, 12, 2]])
    sentence = tower.words(torch.tensor([[10, 11]]))
    as_sentence = tower(slotted, sentence, torch.tensor([2]), torch.tensor([2]), end)
    assert torch.allclose(as_words, as_sentence, atol=1e-6)
    shifted = tower(slotted, sentence, torch.tensor([1]), torch.tensor([2]), end)
    assert (as_words - shifted).abs().max() > 1e-3
    assert none.sum() == 0


@torch.no_grad()
def test_nothing_after_the_end_is_seen(tower: TextTower) -> None:
    zero = torch.zeros(1, dtype=torch.int64)
    short = tower(torch.tensor([[1, 9, 2]]), torch.zeros(1, 1, 64), zero, zero, torch.tensor([2]))
    padded = tower(torch.tensor([[1, 9, 2, 0, 0, 7]]), torch.ones(1, 3, 64), zero, zero, torch.tensor([2]))
    assert torch.allclose(short, padded, atol=1e-6)


def test_typed_placeholders_stay_words() -> None:
    tokenizer = build_tokenizer(vocabulary())
    built = rows(tokenizer, [composed_prompt("{sentence} <slot> $20", picture=True)], context=64, tokens=4)
    ids = built.token_ids[0].tolist()
    start = int(built.sentence_start[0])
    assert ids[start : start + 4] == [SLOT] * 4
    assert ids.count(SLOT) == 4
    assert ids.count(EOS) == 1
    assert UNK in ids


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="the tower takes 8"):
        rows(build_tokenizer(vocabulary()), ["a " * 20], context=8)


def test_fresh_tokens_have_the_length_of_words() -> None:
    torch.manual_seed(0)
    learner = TokenLearner(32, 4, 64)
    learner.match_norm(0.7)
    norms = learner(torch.randn(16, 36, 32)).detach().norm(dim=2)
    assert 0.5 < float(norms.mean()) < 0.9


@torch.no_grad()
def test_attention_is_a_convex_combination_and_competes() -> None:
    torch.manual_seed(0)
    learner = TokenLearner(32, 4, 64)
    x = learner.norm(learner.project(torch.randn(2, 36, 32)))
    weights = learner.attention(x)
    assert torch.allclose(weights.sum(2), torch.ones(2, 4), atol=1e-5)
    assert (weights >= 0).all()


@torch.no_grad()
def test_heads_begin_as_the_untuned_mode() -> None:
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(3, 5, 16), dim=2)
    assert torch.allclose(QueryHead(16).eval()(*unit), unit[0], atol=1e-6)
    assert torch.allclose(TargetHead(torch.randn(16)).eval()(3 * unit[0]), unit[0], atol=1e-6)


def test_contrast_prefers_pairs_and_feels_the_bank() -> None:
    unit = torch.eye(4)
    scale = torch.tensor(10.0)
    right, wrong = contrast(unit, unit, scale), contrast(unit, unit.roll(1, 0), scale)
    assert right < 0.01 < 5 < wrong
    assert contrast(unit, unit, scale, bank=unit[:1]) > right + 0.05
    assert len(without(torch.eye(4), torch.eye(4)[:1])) == 3


def test_the_recipe_is_asymmetric_enough() -> None:
    recipe = Recipe()
    pixels = torch.zeros(1, recipe.side, recipe.side, 3, dtype=torch.uint8)
    teacher = multiply_adds(ImageTower(recipe.teacher_widths, recipe.dim), pixels)
    student = Student(recipe.student_widths, recipe.tokens, recipe.word_width)
    assert teacher >= 8 * multiply_adds(student, pixels)
    assert 4 * parameters(student) < 3_000_000  # bytes of the edge half
    assert parameters(Student(TINY.student_widths, 4, 64)) < parameters(student)
