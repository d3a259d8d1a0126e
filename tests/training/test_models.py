"""The sentence goes where it should, and the pieces keep their promises."""

from __future__ import annotations

import pytest
import torch
from pocketlens_training.compositions import Gated
from pocketlens_training.cost import multiply_adds, parameters
from pocketlens_training.sample import TINY, SampleRecipe
from pocketlens_training.students.backbones import make_backbone
from pocketlens_training.students.student import Student
from pocketlens_training.students.token_learner import Attention, TokenLearner
from pocketlens_training.targets import GatedUnion
from pocketlens_training.teachers.own import TeacherRecipe, build_towers
from pocketlens_training.teachers.towers import ImageTower, TextTower
from pocketlens_training.teachers.vocabulary import SLOT


@pytest.fixture(scope="module")
def tower() -> TextTower:
    torch.manual_seed(1)
    return TextTower(50, 32, 64, 2, 16).eval()


@torch.no_grad()
def test_a_sentence_of_word_embeddings_equals_the_words(tower: TextTower) -> None:
    plain = torch.tensor([[1, 9, 10, 11, 12, 2]])
    zero, end = torch.zeros(1, dtype=torch.int64), torch.tensor([5])
    as_words = tower(plain, torch.zeros(1, 1, 64), zero, zero, end)
    slotted = torch.tensor([[1, 9, SLOT, SLOT, 12, 2]])
    sentence = tower.words(torch.tensor([[10, 11]]))
    as_sentence = tower(slotted, sentence, torch.tensor([2]), torch.tensor([2]), end)
    assert torch.allclose(as_words, as_sentence, atol=1e-6)
    shifted = tower(slotted, sentence, torch.tensor([1]), torch.tensor([2]), end)
    assert (as_words - shifted).abs().max() > 1e-3


@torch.no_grad()
def test_nothing_after_the_end_is_seen(tower: TextTower) -> None:
    zero = torch.zeros(1, dtype=torch.int64)
    short = tower(torch.tensor([[1, 9, 2]]), torch.zeros(1, 1, 64), zero, zero, torch.tensor([2]))
    padded = tower(torch.tensor([[1, 9, 2, 0, 0, 7]]), torch.ones(1, 3, 64), zero, zero, torch.tensor([2]))
    assert torch.allclose(short, padded, atol=1e-6)


@torch.no_grad()
def test_the_state_that_is_pooled_is_the_feature(tower: TextTower) -> None:
    ids, zero = torch.tensor([[1, 9, 10, 2]]), torch.zeros(1, dtype=torch.int64)
    end = torch.tensor([3])
    states = tower.projected(ids, torch.zeros(1, 1, 64), zero, zero, end)
    pooled = tower(ids, torch.zeros(1, 1, 64), zero, zero, end)[0]
    assert torch.allclose(states[0, int(tower.pooled_at(end))], pooled, atol=1e-6)


def test_fresh_tokens_have_the_length_of_words() -> None:
    torch.manual_seed(0)
    for length in (0.7, 5.0):
        learner = TokenLearner(32, 4, 64)
        learner.match_norm(length)
        norms = learner(torch.randn(16, 36, 32)).detach().norm(dim=2)
        assert 0.7 * length < float(norms.mean()) < 1.3 * length


@torch.no_grad()
def test_attention_is_a_convex_combination_and_competes() -> None:
    torch.manual_seed(0)
    learner = TokenLearner(32, 4, 64)
    x = learner.norm(learner.project(torch.randn(2, 36, 32)))
    weights = learner.attention(x)
    assert torch.allclose(weights.sum(2), torch.ones(2, 4), atol=1e-5)
    assert (weights >= 0).all()
    learner.queries[1] = 10 * x[0, 7]  # a token that wants one place takes it from the others
    greedy = learner.attention(x)[0]
    assert greedy[1, 7] >= greedy[1].max() - 1e-6
    assert (greedy[[0, 2, 3], 7] < 1e-3).all()


@torch.no_grad()
def test_a_token_is_read_where_it_looks() -> None:
    torch.manual_seed(0)
    learner = TokenLearner(8, 3, 16)
    features = torch.randn(2, 9, 8)
    reading = learner.read(features)
    pooled = reading.attention @ learner.norm(learner.project(features))
    assert torch.allclose(reading.first, learner.start(pooled) + learner.queries, atol=1e-6)
    assert torch.equal(reading.sentence, learner(features))


@torch.no_grad()
def test_tokens_of_a_picture_do_not_depend_on_its_neighbours() -> None:
    """Rows of all pictures lie below each other inside; none may read another's."""
    torch.manual_seed(0)
    learner = TokenLearner(8, 3, 16).eval()
    for block in learner.blocks:
        for attention in (block.cross, block.mix):
            torch.nn.init.normal_(attention.out.weight)
    features = torch.randn(4, 9, 8)
    alone = torch.cat([learner(features[n : n + 1]) for n in range(4)])
    assert torch.allclose(learner(features), alone, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-2


@torch.no_grad()
def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 4)
    torch.nn.init.normal_(attention.out.weight)
    queries, places = torch.randn(2, 3, 16), torch.randn(2, 9, 16)
    weight, bias = attention.key_value.weight.chunk(2), attention.key_value.bias.chunk(2)
    expected, _ = torch.nn.functional.multi_head_attention_forward(
        queries.transpose(0, 1), places.transpose(0, 1), places.transpose(0, 1), 16, 4,
        None, torch.cat([attention.query.bias, *bias]), None, None, False, 0.0, attention.out.weight,
        attention.out.bias, use_separate_proj_weight=True, q_proj_weight=attention.query.weight,
        k_proj_weight=weight[0], v_proj_weight=weight[1],
    )  # fmt: skip
    came = attention(queries.flatten(0, 1), places.flatten(0, 1), 2).unflatten(0, (2, 3))
    assert torch.allclose(came, expected.transpose(0, 1), atol=1e-5)


@torch.no_grad()
def test_anchored_tokens_are_mixtures_of_the_anchors() -> None:
    torch.manual_seed(0)
    anchors = torch.randn(5, 16)  # independent, so a mixture has one solution
    learner = TokenLearner(8, 3, 16, anchors=anchors)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.match_norm(9.0)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())  # already words
    learner.gain.fill_(1.7)
    tokens = learner(5 * torch.randn(4, 9, 8)).flatten(0, 1)
    weights = torch.linalg.lstsq(anchors.T, tokens.T / 1.7).solution.T
    assert torch.allclose(weights @ anchors, tokens / 1.7, atol=1e-4)
    assert (weights > -1e-4).all()
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=1e-4)
    assert "anchors" in learner.state_dict()
    assert not any(parameter is learner.anchors for parameter in learner.parameters())


@torch.no_grad()
def test_heads_begin_as_the_untuned_mode() -> None:
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(3, 5, 16), dim=2)
    assert torch.allclose(Gated(16).eval()(*unit), unit[0], atol=1e-6)
    assert torch.allclose(GatedUnion(torch.randn(16)).eval()(3 * unit[0]), unit[0], atol=1e-6)


def student_of(recipe: SampleRecipe) -> Student:
    encoder = make_backbone(recipe.student.student)
    return Student(encoder, TokenLearner(encoder.channels, recipe.student.tokens, recipe.teacher.word_width))


def test_the_recipe_is_asymmetric_enough() -> None:
    recipe = SampleRecipe()
    side = recipe.teacher.side
    pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    teacher = multiply_adds(ImageTower(recipe.teacher.widths, recipe.teacher.dim), pixels)
    student = student_of(recipe)
    assert student.encoder.side == side
    assert teacher >= 8 * multiply_adds(student, pixels)
    assert 4 * parameters(student) < 3_000_000  # bytes of the edge half
    assert parameters(student_of(TINY)) < parameters(student)


def test_the_scale_of_a_teacher_stays_within_clips_bounds() -> None:
    towers = build_towers(TeacherRecipe(widths=(4, 4, 8, 8), dim=8, word_width=32, text_layers=1), 20)
    assert float(towers.scale().detach()) == pytest.approx(15.0)
    with torch.no_grad():
        towers.log_scale.fill_(50.0)
    assert float(towers.scale().detach()) == 100.0
