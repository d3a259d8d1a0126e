"""Each loss has its least where it should, and pulls there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pocketlens_training.losses import (
    angle_loss,
    contrast,
    hard_ones,
    hit_rate,
    map_alignment,
    matching,
    regridded,
    relational,
    twins,
    without,
)
from torch import Tensor


def units(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_contrast_prefers_pairs_and_feels_the_bank() -> None:
    unit = torch.eye(4)
    scale = torch.tensor(10.0)
    right, wrong = contrast(unit, unit, scale), contrast(unit, unit.roll(1, 0), scale)
    assert right < 0.01 < 5 < wrong
    assert contrast(unit, unit, scale, bank=unit[:1]) > right + 0.05


def test_contrast_is_clips() -> None:
    left, right = units(6, 8), units(6, 8, seed=1)
    logits = 7.0 * left @ right.T
    labels = torch.arange(6)
    wanted = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert torch.allclose(contrast(left, right, 7.0), wanted)
    bank = units(3, 8, seed=2)
    wider = F.cross_entropy(torch.cat([logits, 7.0 * left @ bank.T], 1), labels)  # for the left rows alone
    assert torch.allclose(contrast(left, right, 7.0, bank), (wider + F.cross_entropy(logits.T, labels)) / 2)


def test_relational_is_nothing_where_the_distributions_are_equal() -> None:
    image, bank = units(5, 8), units(20, 8, seed=1)
    assert relational(image, image, bank, 12.0, teacher_scale=12.0) == pytest.approx(0, abs=1e-6)
    other = units(5, 8, seed=2)
    assert relational(other, image, bank, 12.0, teacher_scale=12.0) > 0.1
    p, q = (12 * image @ bank.T).softmax(1), (12 * other @ bank.T).softmax(1)
    by_hand = (p * (p / q).log()).sum(1).mean()
    assert relational(other, image, bank, 12.0, teacher_scale=12.0) == pytest.approx(float(by_hand), rel=1e-4)


def test_relational_pulls_a_sentence_to_where_its_picture_is() -> None:
    image, bank = units(4, 8), units(64, 8, seed=1)
    text = units(4, 8, seed=2).requires_grad_(True)
    before = float((text * image).sum(1).mean().detach())
    for _ in range(200):
        loss = relational(F.normalize(text, dim=1), image, bank, 10.0, teacher_scale=10.0)
        (gradient,) = torch.autograd.grad(loss, text)
        text = (text - 0.3 * gradient).detach().requires_grad_(True)
    assert float((F.normalize(text, dim=1) * image).sum(1).mean().detach()) > before + 0.5


def test_a_positive_is_not_its_own_negative() -> None:
    eye = torch.eye(4)
    assert torch.equal(without(eye, eye[:1]), eye[1:])
    assert len(without(eye, eye)) == 0
    near = F.normalize(eye[0] + 0.2 * eye[1], dim=0)[None]
    assert len(without(eye, near)) == 4  # near is a good negative; the same is none


def test_an_angle() -> None:
    eye = torch.eye(3)
    assert angle_loss(eye, eye) == 0 and angle_loss(eye, -eye) == 2 and angle_loss(eye, eye.roll(1, 0)) == 1


def test_maps_align_where_tokens_say_what_lies_where_they_look() -> None:
    places = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    attention = torch.zeros(2, 3, 9)
    attention[:, [0, 1, 2], [4, 0, 8]] = 1.0
    said = places[:, [4, 0, 8]]
    assert map_alignment(3 * said, attention, places) == pytest.approx(0, abs=1e-6)
    assert map_alignment(-said, attention, places) == pytest.approx(2, abs=1e-6)
    assert map_alignment(said, attention.roll(1, 1), places) > 0.3
    first = torch.randn(2, 3, 5).requires_grad_(True)
    loss = map_alignment(first, attention, places)
    (gradient,) = torch.autograd.grad(loss, first)
    assert map_alignment(first - 0.1 * gradient, attention, places) < loss


@pytest.mark.parametrize(("light", "large"), [((6, 6), (7, 7)), ((6, 6), (3, 3)), ((3, 3), (12, 12)), ((4, 4), (4, 4))])
def test_weights_on_another_grid_still_sum_to_one(light, large) -> None:
    attention = torch.rand(2, 3, light[0] * light[1]).softmax(2)
    resized = regridded(attention, light, large)
    assert resized.shape == (2, 3, large[0] * large[1])
    assert (resized >= 0).all()
    assert torch.allclose(resized.sum(2), torch.ones(2, 3), atol=1e-5)


def test_weights_stay_where_they_were() -> None:
    attention = torch.zeros(1, 1, 4)
    attention[0, 0, 1] = 1.0  # top right
    assert regridded(attention, (2, 2), (4, 4)).reshape(4, 4)[:2, 2:].sum() == pytest.approx(1)
    assert regridded(regridded(attention, (2, 2), (4, 4)), (4, 4), (2, 2)).argmax() == 1


def test_matching_wants_own_pairs_alone() -> None:
    yes, no = torch.tensor([[-9.0, 9.0]]), torch.tensor([[9.0, -9.0]])
    assert matching(yes, no, no) < 1e-3
    assert matching(no, no, no) > 5 and matching(yes, yes, no) > 5 and matching(yes, no, yes) > 5
    by_hand = F.cross_entropy(torch.cat([yes, no, yes]), torch.tensor([1, 0, 0]))
    assert torch.equal(matching(yes, no, yes), by_hand)


def test_hard_ones_are_never_oneself_and_mostly_the_likest() -> None:
    similarity = torch.zeros(5, 5)
    similarity.fill_diagonal_(100.0)
    similarity[0, 3] = 6.0
    torch.manual_seed(0)
    drawn = torch.stack([hard_ones(similarity) for _ in range(200)])
    assert (drawn != torch.arange(5)).all()
    assert (drawn[:, 0] == 3).float().mean() > 0.95
    assert len(drawn[:, 1].unique()) == 4


def test_hit_rate() -> None:
    eye = torch.eye(4)
    assert hit_rate(eye, eye) == 1
    assert hit_rate(eye, eye[[1, 0, 2, 3]]) == 0.5


def test_a_picture_that_stands_twice_in_a_batch_is_no_negative_of_itself() -> None:
    image = torch.eye(3)[[0, 1, 0]]
    text = torch.nn.functional.normalize(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    same = twins(image)
    assert same.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    plain, cleaned = contrast(text, image, 10.0), contrast(text, image, 10.0, same=same)
    assert cleaned < plain  # the twin is no wrong answer
    assert torch.allclose(cleaned, contrast(text, image, 10.0, same=same.T))
