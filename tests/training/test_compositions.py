"""Compositions are what their papers say, number for number, and the graphs written of them give the same."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pocketlens_cloud.runtime import Graph
from pocketlens_export.graphs import write_graph, write_rows_graph
from pocketlens_training.compositions import (
    COMPOSITIONS,
    FEATURES,
    STATES,
    Gated,
    Pdv,
    Plain,
    Slerp,
    TransAgg,
    WeightedSum,
    make_composition,
    product_scores,
    superglobal_rerank,
    weicom_scores,
)
from pocketlens_training.cost import parameters
from torch import Tensor, nn
from torch.export import Dim

DIM = 16
Doubles = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(6)


def features(count: int = 6) -> Tensor:
    """composed, picture and words (3, count, DIM), unit."""
    return F.normalize(torch.randn(3, count, DIM), dim=2)


def rows(batch: int, words: int, picture: int, dim: int = DIM) -> dict[str, Tensor]:
    """STATES: two sets of rows of different real lengths, raw states, noise at the padding."""

    def part(length: int) -> tuple[Tensor, Tensor, Tensor]:
        real = torch.randint(2, length + 1, (batch,))
        return 3 * torch.randn(batch, length, dim), torch.arange(length) < real[:, None], real - 1

    return dict(zip(STATES, (*part(words), *part(picture)), strict=True))


def shaken(module: nn.Module) -> nn.Module:
    """The same in evaluation mode, every weight moved, so that no start at 0 or 1 hides a mistake."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return module.eval()


def unit(rows: Doubles) -> Doubles:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def of(tensor: Tensor) -> Doubles:
    return tensor.detach().double().numpy()


# --- one vector


@torch.no_grad()
def test_pdv_is_its_formula() -> None:
    c, r, _ = given = features()
    step = of(c) - of(r)
    assert np.allclose(of(Pdv(1.2)(*given)), unit(of(r) + 1.2 * step), atol=1e-6)
    by_text, by_image = of(r) + 1.2 * step, of(r) + 1.6 * step
    assert np.allclose(of(Pdv(1.2, 1.6, 0.3)(*given)), unit(0.7 * by_image + 0.3 * by_text), atol=1e-6)
    assert torch.allclose(Pdv(1.0)(*given), Plain()(*given), atol=1e-6)
    assert torch.equal(Plain()(2 * c, r, r), F.normalize(2 * c, dim=1))


@torch.no_grad()
def test_pdv_with_both_parts_is_one_step_where_the_sentence_stands_for_the_picture() -> None:
    given = features()
    assert torch.allclose(Pdv(1.2, 1.6, 0.3)(*given), Pdv(0.7 * 1.6 + 0.3 * 1.2)(*given), atol=1e-6)


@torch.no_grad()
def test_slerp_goes_its_share_of_the_arc() -> None:
    _, r, m = given = features()
    whole = np.arccos((of(r) * of(m)).sum(1))
    for share in (0.0, 0.3, 0.8, 1.0):
        made = of(Slerp(share)(*given))
        assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
        assert np.allclose(np.clip((made * of(r)).sum(1), -1, 1), np.cos(share * whole), atol=1e-6)
        assert np.allclose(np.clip((made * of(m)).sum(1), -1, 1), np.cos((1 - share) * whole), atol=1e-6)


@torch.no_grad()
def test_slerp_stands_parallel_and_opposite_vectors() -> None:
    c, r, _ = features()
    nearly = F.normalize(r + 1e-4 * torch.randn_like(r), dim=1)
    assert torch.allclose(Slerp(0.5)(c, r, r), r, atol=1e-6)
    assert torch.allclose(Slerp(0.5)(c, r, nearly), F.normalize(r + nearly, dim=1), atol=1e-6)
    assert torch.allclose(Slerp(0.8)(c, r, -r), -r, atol=1e-5)
    assert torch.allclose(Slerp(0.5)(c, r, -r), c, atol=1e-6)  # nothing is left of the two


def test_slerp_has_a_gradient_at_parallel_vectors() -> None:
    c, r, _ = features()
    words = r.clone().requires_grad_()
    (Slerp(0.5)(c, r, words) * c).sum().backward()
    assert words.grad is not None
    assert words.grad.isfinite().all()


@torch.no_grad()
def test_the_weighted_sum_ranks_as_the_sum_of_both_cosines() -> None:
    c, r, m = given = features()
    gallery = F.normalize(torch.randn(50, DIM), dim=1)
    scores = WeightedSum(0.3)(*given) @ gallery.T
    both = 0.7 * r @ gallery.T + 0.3 * m @ gallery.T
    assert torch.equal(scores.argsort(1), both.argsort(1))
    assert np.allclose(of(WeightedSum(0.3)(*given)), unit(0.7 * of(r) + 0.3 * of(m)), atol=1e-6)
    assert torch.allclose(WeightedSum(0.5)(c, r, -r), c, atol=1e-6)


@torch.no_grad()
def test_the_gated_head_begins_as_plain_and_can_leave() -> None:
    given = features()
    head = Gated(DIM).eval()
    assert torch.allclose(head(*given), Plain()(*given), atol=1e-6)
    assert (shaken(head)(*given) - given[0]).abs().max() > 0.05


# --- TransAgg


def numpy_transagg(head: TransAgg, words: Doubles, picture: Doubles, heads: int) -> Doubles:
    """The paper's forward pass on one query's real states (length, dim), written a second time."""
    weights = {name: of(weight) for name, weight in head.state_dict().items()}

    def linear(x: Doubles, name: str) -> Doubles:
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x: Doubles, name: str) -> Doubles:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[name + ".weight"] + weights[name + ".bias"]

    def gelu(x: Doubles) -> Doubles:
        return x * np.vectorize(NormalDist().cdf)(x)

    x = np.concatenate([words, weights["separator"][0], picture])
    for layer in range(len(head.encoder.layers)):
        at = f"encoder.layers.{layer}."
        seen = norm(x, at + "norm1")
        parts = np.split(
            seen @ weights[at + "self_attn.in_proj_weight"].T + weights[at + "self_attn.in_proj_bias"], 3, 1
        )
        mixed = []
        for q, k, v in zip(*(np.split(part, heads, 1) for part in parts), strict=True):
            attention = np.exp(q @ k.T / math.sqrt(q.shape[1]))
            mixed.append(attention / attention.sum(1, keepdims=True) @ v)
        x = x + linear(np.concatenate(mixed, 1), at + "self_attn.out_proj")
        x = x + linear(gelu(linear(norm(x, at + "norm2"), at + "linear1")), at + "linear2")
    z_words, z_picture = x[len(words) - 1], x[-1]
    joined = linear(np.maximum(linear(np.concatenate([z_picture, z_words]), "join.0"), 0), "join.3")
    first, second, third = linear(joined, "weigh")
    return unit(first * words[-1] + second * joined + third * picture[-1])


@torch.no_grad()
def test_transagg_is_the_papers_computation() -> None:
    head = shaken(TransAgg(DIM, heads=4, hidden=24))
    given = rows(5, 6, 9)
    made = of(head(*given.values()))
    for i, row in enumerate(made):
        words = of(given["words_states"][i, : given["words_end"][i] + 1])
        picture = of(given["picture_states"][i, : given["picture_end"][i] + 1])
        assert np.allclose(row, numpy_transagg(head, words, picture, 4), atol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_transagg_sees_no_padding_in_training_nor_after(mode: bool) -> None:
    head = TransAgg(DIM, heads=4, hidden=24, dropout=0.0).train(mode)
    given = rows(8, 6, 9)
    expected = head(*given.values())
    for part in ("words", "picture"):
        other = 50 * torch.randn_like(given[f"{part}_states"])
        given[f"{part}_states"] = torch.where(given[f"{part}_mask"][:, :, None], given[f"{part}_states"], other)
    assert not given["words_mask"].all()
    assert torch.allclose(head(*given.values()), expected, atol=1e-5)
    given["picture_mask"][:] = True
    assert (head(*given.values()) - expected).abs().max() > 0.01


@pytest.mark.parametrize(("dim", "millions"), [(256, 4.21), (512, 12.60), (768, 25.19)])
def test_transagg_has_the_papers_size(dim: int, millions: float) -> None:
    with torch.device("meta"):
        assert parameters(TransAgg(dim)) / 1e6 == pytest.approx(millions, abs=0.006)


# --- scores


def test_two_negative_cosines_make_no_good_product() -> None:
    made = product_scores(torch.tensor([[0.5, -0.5, 0.4, -0.3]]), torch.tensor([[0.2, -0.9, -0.1, 0.6]]))
    assert made[0].tolist() == pytest.approx([0.1, 0, 0, 0])


def test_weicom_fits_a_normal_to_each_querys_scores() -> None:
    by_picture, by_words = torch.randn(3, 40), 5 + 0.1 * torch.randn(3, 40)
    made = of(weicom_scores(by_picture, by_words, 0.3))
    for row, of_picture, of_words in zip(made, of(by_picture), of(by_words), strict=True):
        fitted = [NormalDist.from_samples(scores.tolist()) for scores in (of_picture, of_words)]
        expected = [0.7 * fitted[0].cdf(p) + 0.3 * fitted[1].cdf(w) for p, w in zip(of_picture, of_words, strict=True)]
        assert row == pytest.approx(expected, abs=1e-5)


def test_weicom_of_scores_that_are_all_alike_is_even() -> None:
    alike, varied = torch.full((2, 30), 0.3), torch.randn(2, 30)
    assert torch.allclose(weicom_scores(alike, alike), torch.full((2, 30), 0.5), atol=0.02)
    assert torch.equal(weicom_scores(varied, alike).argsort(1), varied.argsort(1))
    assert weicom_scores(torch.ones(2, 1), torch.zeros(2, 1)).tolist() == [[0.5], [0.5]]


def numpy_rerank(
    query: Doubles, gallery: Doubles, top: int, neighbours: int, beta: float, *, as_published: bool
) -> tuple[list[int], list[float]]:
    """Order of the whole gallery for one query and the top's new scores in that order: the source's loops."""
    order = np.argsort(-(gallery @ query), kind="stable")
    first = gallery[order[:top]]
    smooth = []
    for one in first:
        cosines = first @ one
        near = np.argsort(-cosines, kind="stable")[: neighbours + 1]
        weights = np.array([1.0] + [beta * max(cosines[i], 0) for i in near[1:]])
        smooth.append((weights[:, None] * first[near]).sum(0) / weights.sum())
    by_query = np.array([query @ one for one in smooth])
    best = [smooth[i] for i in np.argsort(-by_query, kind="stable")[: neighbours + 1]]
    expanded = np.max(best, 0) if as_published else np.mean(best, 0)
    by_expanded = np.array([expanded @ one for one in smooth])
    if not as_published:
        by_query, by_expanded = ((s - s.mean()) / s.std(ddof=1) for s in (by_query, by_expanded))
    scores = (by_query + by_expanded) / 2
    again = np.argsort(-scores, kind="stable")
    return [*order[:top][again].tolist(), *order[top:].tolist()], scores[again].tolist()


@pytest.mark.parametrize("top", [20, 6])  # in 6, neighbours are also such as point away
@pytest.mark.parametrize("as_published", [True, False])
def test_rerank_is_the_sources_with_the_rest_in_its_old_order(as_published: bool, top: int) -> None:
    made = torch.randn(64, DIM)
    gallery = F.normalize(made.abs() if as_published else made, dim=1)
    query = F.normalize(torch.randn(4, DIM).abs() if as_published else torch.randn(4, DIM), dim=1)
    scores = superglobal_rerank(query, gallery, top, 5, 0.4, as_published=as_published)
    assert scores.shape == (4, 64)
    for row, vector in zip(scores, query, strict=True):
        order, expected = numpy_rerank(of(vector), of(gallery), top, 5, 0.4, as_published=as_published)
        assert row.argsort(descending=True).tolist() == order
        found = row[order[:top]]
        assert (found - found[-1]).tolist() == pytest.approx(np.subtract(expected, expected[-1]).tolist(), abs=1e-4)
    plain = (query @ gallery.T).double()
    rest = 64 - top
    assert torch.allclose(scores.sort(1).values[:, :rest], plain.sort(1).values[:, :rest])
    assert not torch.equal(scores.argsort(1), plain.argsort(1))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_rerank_takes_a_gallery_smaller_than_its_top(size: int) -> None:
    gallery, query = F.normalize(torch.randn(size, DIM), dim=1), F.normalize(torch.randn(3, DIM), dim=1)
    scores = superglobal_rerank(query, gallery)
    assert scores.shape == (3, size)
    assert scores.isfinite().all()
    assert superglobal_rerank(query, gallery[:1].expand(size, -1)).isfinite().all()


# --- by name, and as graphs


def test_names_carry_their_numbers() -> None:
    given = features()
    for name, expected in (
        ("pdv:1.3", Pdv(1.3)),
        ("pdv:1.3,1.5,0.2", Pdv(1.3, 1.5, 0.2)),
        ("slerp:0.6", Slerp(0.6)),
        ("sum:0.25", WeightedSum(0.25)),
        ("plain", Plain()),
    ):
        assert torch.equal(make_composition(name, DIM)(*given), expected(*given))
    assert isinstance(make_composition("gated", DIM), Gated)
    assert isinstance(make_composition("transagg", DIM), TransAgg)
    for name in COMPOSITIONS:
        make_composition(name, DIM)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("union", "no composition `union`; there are gated, transagg, plain, pdv, slerp, sum"),
        ("", "no composition ``"),
        ("slerp:0.5,0.6", "slerp takes at most 1 numbers, not 2"),
        ("gated:2", "gated takes at most 0 numbers, not 1"),
        ("sum:half", "finite numbers with commas between, not `half`"),
        ("pdv:nan", "finite numbers with commas between, not `nan`"),
    ],
)
def test_another_name_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_composition(name, DIM)


@pytest.mark.parametrize("name", ["plain", "gated", "pdv:1.2", "pdv:1.2,1.4,0.9", "slerp:0.8", "sum:0.5"])
def test_the_written_graph_is_the_composition(name: str, tmp_path: Path) -> None:
    head = shaken(make_composition(name, DIM))
    write_rows_graph(head, tmp_path / "head.onnx", inputs=FEATURES, shape=(DIM,), output="query")
    graph = Graph(tmp_path / "head.onnx", threads=1).require(inputs=FEATURES, outputs=["query"])
    for count in (1, 5):
        given = features(count)
        given[2, 0] = given[1, 0]  # words that say what the picture says
        (made,) = graph.run(["query"], dict(zip(FEATURES, given.numpy(), strict=True)))
        assert np.abs(made - of(head(*given))).max() < 2e-6
        assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_written_transagg_takes_rows_of_any_lengths(frozen: bool, tmp_path: Path) -> None:
    head = shaken(TransAgg(DIM, heads=4, hidden=24)).requires_grad_(not frozen)  # torch has a fast path when frozen
    batch, words, picture = Dim("batch"), Dim("words"), Dim("picture")
    free = (
        {0: batch, 1: words},
        {0: batch, 1: words},
        {0: batch},
        {0: batch, 1: picture},
        {0: batch, 1: picture},
        {0: batch},
    )
    write_graph(head, tmp_path / "head.onnx", inputs=rows(2, 5, 7), outputs=["query"], dynamic=free)
    graph = Graph(tmp_path / "head.onnx", threads=1).require(inputs=STATES, outputs=["query"])
    for shape in ((5, 6, 9), (1, 9, 3), (3, 4, 4)):
        given = rows(*shape)
        (made,) = graph.run(["query"], {name: tensor.numpy() for name, tensor in given.items()})
        assert np.abs(made - of(head(*given.values()))).max() < 5e-6
