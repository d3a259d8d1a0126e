"""Targets are what their papers say, number for number, and the graphs written of them give the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pocketlens_cloud.runtime import Graph
from pocketlens_export.graphs import write_rows_graph
from pocketlens_training.cost import parameters
from pocketlens_training.losses import contrast
from pocketlens_training.t5 import T5Encoder, buckets
from pocketlens_training.targets import (
    TARGETS,
    GatedUnion,
    Original,
    Sum,
    UnionExact,
    UnionLight,
    make_target,
    sizes,
)
from torch import Tensor, nn

DIM = 16
Doubles = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(5)


def empty() -> Tensor:
    return 2.5 * torch.randn(DIM)


def images(count: int = 6) -> Tensor:
    """Raw features, of lengths far from 1."""
    return torch.randn(count, DIM) * torch.linspace(0.5, 4, count)[:, None]


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


@torch.no_grad()
def test_original_and_sum_are_their_formulas() -> None:
    e0, v = empty(), images()
    assert np.allclose(of(Original(e0)(v)), unit(of(v)), atol=1e-6)
    for weight in (1.0, -0.5):
        expected = unit(of(v) + weight * of(e0))  # raw lengths: a unit v or e0 would give another direction
        assert np.allclose(of(Sum(e0, weight)(v)), expected, atol=1e-6)
    as_trained = unit(of(v)) + unit(of(e0))
    assert np.allclose(of(Sum(e0).as_trained(v)), as_trained, atol=1e-6)
    assert np.abs(np.linalg.norm(as_trained, axis=1) - 1).max() > 0.1


def test_sum_trains_nothing_that_original_does_not() -> None:
    e0, v = empty(), images(8)
    raw, scale, labels = torch.randn(8, DIM), torch.tensor(20.0), torch.arange(8)

    def gradients(target: Tensor) -> tuple[Tensor, Tensor]:
        query = raw.clone().requires_grad_()
        one_way = F.cross_entropy(scale * query @ target.T, labels)
        (of_one_way,) = torch.autograd.grad(one_way, query)
        (of_both,) = torch.autograd.grad(contrast(query, target, scale), query)
        return of_one_way, of_both

    (original, original_both), (summed, summed_both) = gradients(Original(e0)(v)), gradients(Sum(e0).as_trained(v))
    assert original.abs().max() > 0.1
    assert torch.allclose(original, summed, atol=1e-4)
    assert (original_both - summed_both).abs().max() > 0.1  # the symmetric loss's other half does see it


def numpy_t5(encoder: T5Encoder, tokens: Doubles) -> Doubles:
    """T5's stack on one sequence (length, dim), written a second time from the paper, in evaluation mode."""
    weights = {name: of(weight) for name, weight in encoder.state_dict().items()}
    length = len(tokens)

    def norm(x: Doubles, name: str) -> Doubles:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weights[name]

    def bucket(asking: int, asked: int) -> int:
        return abs(asked - asking) + (16 if asked > asking else 0)

    x = tokens
    for layer in range(len(encoder.blocks)):
        at = f"blocks.{layer}."
        seen = norm(x, at + "before_attention.weight")
        query, key, value = (seen @ weights[f"{at}attention.{part}.weight"].T for part in ("query", "key", "value"))
        heads = weights["bias.weight"].shape[1]
        mixed = []
        for head, (q, k, v) in enumerate(zip(*(np.split(part, heads, 1) for part in (query, key, value)), strict=True)):
            logits = q @ k.T
            for i in range(length):
                for j in range(length):
                    logits[i, j] += weights["bias.weight"][bucket(i, j), head]
            attention = np.exp(logits - logits.max(1, keepdims=True))
            mixed.append(attention / attention.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(mixed, 1) @ weights[at + "attention.out.weight"].T
        wide = np.maximum(norm(x, at + "before_mlp.weight") @ weights[at + "mlp.0.weight"].T, 0)
        x = x + wide @ weights[at + "mlp.3.weight"].T
    return norm(x, "norm.weight")


@torch.no_grad()
def test_union_is_the_papers_computation() -> None:
    target, v = UnionExact(empty(), heads=4, width=4, hidden=24), images()
    shaken(target)
    e0 = of(target.empty_raw[0])
    first, second, third = (target.share[i] for i in (0, 3, 6))
    expected, shares = [], []
    for row in of(v):
        states = numpy_t5(target.encoder, np.stack([row, e0])).reshape(-1)  # [h_v, h_e0]
        x = 1 / (1 + np.exp(-(of(first.weight) @ states + of(first.bias))))
        x = 1 / (1 + np.exp(-(of(second.weight) @ x + of(second.bias))))
        share = (of(third.weight) @ x + of(third.bias)).item()
        expected.append(unit(share * row + (1 - share) * e0))
        shares.append(share)
    assert np.std(shares) > 0.01
    assert np.allclose(of(target.weights(v)[0])[:, 0], shares, atol=1e-5)
    assert np.allclose(of(target(v)), expected, atol=1e-5)


@pytest.mark.parametrize(("dim", "millions"), [(256, 7.08), (512, 15.74), (768, 29.11)])
def test_union_has_the_papers_size(dim: int, millions: float) -> None:
    with torch.device("meta"):
        made = UnionExact(torch.zeros(dim), **sizes(dim))
    assert parameters(made) / 1e6 == pytest.approx(millions, abs=0.005)


@torch.no_grad()
def test_union_begins_with_one_share_for_all_pictures() -> None:
    shares = torch.stack(
        [make_target("union", torch.randn(32)).eval().weights(torch.randn(20, 32))[0] for _ in "123456"]
    )
    assert shares.std(1).max() < 0.05
    assert shares.mean() < 0.5
    assert shares.min() < 0


@pytest.mark.parametrize("length", [2, 7])
@pytest.mark.parametrize("heads", [8, 12])
def test_the_stack_equals_transformers(heads: int, length: int) -> None:
    pytest.importorskip("transformers")
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Stack

    config = T5Config(
        vocab_size=4, d_model=48, d_kv=8, d_ff=40, num_layers=4, num_heads=heads, feed_forward_proj="relu",
        dropout_rate=0.1, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    theirs = T5Stack(config)
    ours = T5Encoder(48, length=length, layers=4, heads=heads, width=8, hidden=40, dropout=0.1)
    shaken(theirs)
    names = {
        "q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "attention.out",
        "layer.0.layer_norm": "before_attention", "layer.1.layer_norm": "before_mlp", "wi": "mlp.0", "wo": "mlp.3",
    }  # fmt: skip
    weights = {}
    for name, weight in theirs.state_dict().items():
        if "relative_attention_bias" in name:
            weights["bias.weight"] = weight
        elif name == "final_layer_norm.weight":
            weights["norm.weight"] = weight
        elif name.startswith("block."):
            _, layer, rest = name.removesuffix(".weight").split(".", 2)
            weights[f"blocks.{layer}.{names[rest if 'norm' in rest else rest.rsplit('.', 1)[1]]}.weight"] = weight
    ours.load_state_dict(weights)
    tokens = 3 * torch.randn(5, length, 48)
    for train in (False, True):  # in training mode a seed gives the same dropout only if it lies in the same places
        made = []
        for stack in (ours, theirs):
            stack.train(train)
            torch.manual_seed(9)
            made.append(stack(tokens) if stack is ours else stack(inputs_embeds=tokens).last_hidden_state)
        assert made[0].shape == (5, length, 48)
        assert (made[0] - made[1]).abs().max() < 1e-5
    assert (ours.eval()(tokens) - made[0]).abs().max() > 0.1


def test_the_stack_begins_as_t5_does() -> None:
    encoder = T5Encoder(64, length=2, layers=1, heads=8, width=16, hidden=256, dropout=0.1)
    attention, mlp = encoder.blocks[0].attention, encoder.blocks[0].mlp
    expected = {
        attention.query: (64 * 16) ** -0.5, attention.key: 64**-0.5, attention.value: 64**-0.5,
        attention.out: (8 * 16) ** -0.5, mlp[0]: 64**-0.5, mlp[3]: 256**-0.5, encoder.bias: 64**-0.5,
    }  # fmt: skip
    for layer, deviation in expected.items():
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.15)
        assert getattr(layer, "bias", None) is None


def test_distances_that_t5_would_round_are_refused() -> None:
    assert buckets(3).tolist() == [[0, 17, 18], [1, 0, 17], [2, 1, 0]]
    with pytest.raises(ValueError, match="9 tokens: this stack takes 1 to 8"):
        buckets(9)


@torch.no_grad()
@pytest.mark.parametrize("kind", [UnionLight, GatedUnion])
def test_our_unions_begin_as_original(kind: type) -> None:
    e0, v = empty(), images()
    target = kind(e0).eval()
    assert torch.allclose(target(v), Original(e0)(v), atol=1e-6)
    shaken(target)
    assert (target(v) - Original(e0)(v)).abs().max() > 0.05


@torch.no_grad()
def test_the_light_union_blends_raw_features() -> None:
    assert parameters(UnionLight(torch.zeros(256))) == 33_025
    e0, v = empty(), images()
    target = shaken(UnionLight(e0))
    first, last = target.share[0], target.share[2]
    hidden = np.maximum(of(v) @ of(first.weight).T + of(first.bias), 0)
    share = hidden @ of(last.weight).T + of(last.bias)
    assert np.allclose(of(target(v)), unit(share * of(v) + (1 - share) * of(e0)), atol=1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_the_empty_prompt_is_saved_and_stays(name: str) -> None:
    e0 = empty()
    kept = e0.clone()
    target = make_target(name, e0)
    e0.zero_()
    assert torch.equal(target.state_dict()["empty_raw"][0], kept)
    assert "empty_raw" not in dict(target.named_parameters())


@pytest.mark.parametrize("name", [*TARGETS, "sum:-0.5"])
def test_the_written_graph_is_the_target(name: str, tmp_path: Path) -> None:
    target = shaken(make_target(name, empty()))
    write_rows_graph(target, tmp_path / "target.onnx", inputs=["image_raw"], shape=(DIM,), output="union")
    graph = Graph(tmp_path / "target.onnx", threads=1).require(inputs=["image_raw"], outputs=["union"])
    for count in (1, 5):
        v = images(count)
        (made,) = graph.run(["union"], {"image_raw": v.numpy()})
        assert np.abs(made - of(target(v))).max() < 2e-6
        assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["fuse", "", "union:1", "original:0", "sum:1,2"])
def test_another_name_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"no target `{name}`; there are original, sum, union, union-light, union-gated"
    ):
        make_target(name, empty())


@pytest.mark.parametrize("number", ["", "much", "nan", "inf", "0.5,"])
def test_a_number_that_is_none_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match=f"finite numbers with commas between, not `{number}`"):
        make_target(f"sum:{number}", empty())
