"""What a query becomes: from the cloud's text features of sentence and words, one vector or one row of scores.

Owns three kinds. Learned heads: `Gated` (ours) and `TransAgg` (arXiv 2306.07272, adapted). Training-free vectors:
`Plain`, `Pdv`, `Slerp`, `WeightedSum`, modules too, so that each can be exported as a bundle's query head.
Training-free scores, which no single vector gives: `product_scores`, `weicom_scores`, `superglobal_rerank`.

The published plug-ins read q_v, the large model's feature of the reference picture. A device that sends sentence
tokens has none, so here r, the text feature of the sentence alone, stands in for it: ours, all through this file."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketlens_training.fusion import Fusion
from pocketlens_training.targets import split_name

FEATURES = ("composed", "picture", "words")
"""What every composition but `TransAgg` takes, in order: text features (batch, dim), unit, of prompt + sentence +
words (c), of prompt + sentence (r) and of the words (m)."""
STATES = ("words_states", "words_mask", "words_end", "picture_states", "picture_mask", "picture_end")
"""What `TransAgg` takes instead, in order."""
SMALL = 1e-6  # below this a length, or a standard deviation of cosines, is rounding


# --- learned


class Gated(nn.Module):
    """FEATURES -> unit (batch, dim): gated sum of the three and a residual MLP. Ours; begins as `Plain`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fusion = Fusion(3, dim, dim)

    def forward(self, composed: Tensor, picture: Tensor, words: Tensor) -> Tensor:
        return self.fusion(composed, picture, words)


class TransAgg(nn.Module):
    """STATES -> unit (batch, dim): a Transformer over both parts' tokens, then three weights.

    As in the paper's code (Code-kunkun/ZS-CIR @5b2a485): the sequence [T; sep; V] without positions, sep learned and
    never masked; the pre-norm encoder without a last norm, its sizes; f from [z_image, z_text]; weights without a
    softmax; the sum w1*t + w2*f + w3*v of *raw* pooled features.
    Ours: T and t are of the row of words alone, and the row of prompt and sentence stands for the picture: V are its
    states, v and z_image those at its end. Its padding is masked like the text's (an image has none). Raw t and v
    are read from the states at the ends, where a tower pools. The code's mask is floats, which (torch 2.13) add 1 to
    the logits of padding in training and truly mask in evaluation; ours masks in both."""

    def __init__(self, dim: int, *, layers: int = 2, heads: int = 8, hidden: int = 2048, dropout: float = 0.5) -> None:
        """hidden: of the encoder's own MLPs. dropout: the paper's; UNION uses 0.1."""
        super().__init__()
        block = nn.TransformerEncoderLayer(
            dim, heads, hidden, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.separator = nn.Parameter(torch.randn(1, 1, dim))
        self.join = nn.Sequential(nn.Linear(2 * dim, 8 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8 * dim, dim))
        self.weigh = nn.Linear(dim, 3)

    def forward(
        self,
        words_states: Tensor,
        words_mask: Tensor,
        words_end: Tensor,
        picture_states: Tensor,
        picture_mask: Tensor,
        picture_end: Tensor,
    ) -> Tensor:
        """states (batch, length, dim): a row's text-tower states, each projected to the joint width, not normalised.
        mask bool (batch, length): True at real positions. end int64 (batch,): where the tower pools. The lengths of
        the two rows may differ. A part that a query lacks is the row of the empty prompt."""
        batch, length, _ = words_states.shape
        sequence = torch.cat([words_states, self.separator.expand(batch, 1, -1), picture_states], 1)
        real = torch.cat([words_mask, torch.ones_like(words_mask[:, :1]), picture_mask], 1)
        mixed = self.encoder(sequence, src_key_padding_mask=~real)
        z_words, z_picture = at(mixed, words_end), at(mixed, picture_end + length + 1)
        joined = self.join(torch.cat([z_picture, z_words], 1))
        weights = self.weigh(joined)
        query = weights[:, :1] * at(words_states, words_end) + weights[:, 1:2] * joined
        return F.normalize(query + weights[:, 2:] * at(picture_states, picture_end), dim=1)


def at(states: Tensor, place: Tensor) -> Tensor:
    """The state (batch, dim) of each row of `states` (batch, length, dim) at `place` (batch,)."""
    return states.gather(1, place[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


# --- training-free, one vector: FEATURES -> unit (batch, dim)


class Plain(nn.Module):
    """The composed feature itself: the sentence read with the words, as the untuned mode does."""

    def forward(self, composed: Tensor, picture: Tensor, words: Tensor) -> Tensor:  # noqa: ARG002
        return F.normalize(composed, dim=1)


class Pdv(nn.Module):
    """PDV: further along the step d = c - r that the words make. T = r + alpha_text*d, I = q_v + alpha_image*d,
    query = norm((1-beta)*I + beta*T); T and I are not normalised before.

    beta 1 (default) is PDV-T; alpha_text 1 with it is `Plain`. beta below 1 is PDV-F's form, but with r for q_v it
    is PDV-T again, of step (1-beta)*alpha_image + beta*alpha_text: one number to tune, not three."""

    def __init__(self, alpha_text: float = 1.2, alpha_image: float = 1.4, beta: float = 1.0) -> None:
        super().__init__()
        self.alpha_text, self.alpha_image, self.beta = alpha_text, alpha_image, beta

    def forward(self, composed: Tensor, picture: Tensor, words: Tensor) -> Tensor:  # noqa: ARG002
        step = composed - picture
        by_text, by_image = picture + self.alpha_text * step, picture + self.alpha_image * step
        return unit((1 - self.beta) * by_image + self.beta * by_text, composed)


class Slerp(nn.Module):
    """The point at `alpha` of the arc from r (0) to m (1), as in youngkyunJang/SLERP-TAT @8c2fe68: a straight line
    where they are nearly parallel, or opposite, when no arc is the shortest."""

    def __init__(self, alpha: float = 0.8) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"`slerp:{alpha:g}`: a point of the arc is 0 (the picture) to 1 (the words)")
        self.alpha = alpha

    def forward(self, composed: Tensor, picture: Tensor, words: Tensor) -> Tensor:
        cosine = (picture * words).sum(1, keepdim=True)
        straight = cosine.abs() > 0.9995  # the source's
        angle = torch.where(straight, torch.zeros_like(cosine), cosine).arccos()
        # The source divides by sin(angle): a positive factor, gone with the length.
        arc = ((1 - self.alpha) * angle).sin() * picture + (self.alpha * angle).sin() * words
        line = (1 - self.alpha) * picture + self.alpha * words
        return unit(torch.where(straight, line, arc), composed)


class WeightedSum(nn.Module):
    """norm((1-weight)*r + weight*m). It ranks as the same sum of the two cosines does."""

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, composed: Tensor, picture: Tensor, words: Tensor) -> Tensor:
        return unit((1 - self.weight) * picture + self.weight * words, composed)


def unit(rows: Tensor, otherwise: Tensor) -> Tensor:
    """Rows (batch, dim) of length 1; where what was blended cancelled out, the row of `otherwise`."""
    nothing = rows.norm(dim=1, keepdim=True) < SMALL
    return F.normalize(torch.where(nothing, otherwise, rows), dim=1)


# --- training-free, scores (queries, gallery): higher is nearer


def product_scores(picture_scores: Tensor, words_scores: Tensor) -> Tensor:
    """Product of the two cosines, each clamped at 0 (billpsomas/icir @463cc1d, method "product")."""
    return picture_scores.clamp(min=0) * words_scores.clamp(min=0)


def weicom_scores(picture_scores: Tensor, words_scores: Tensor, blend: float = 0.5) -> Tensor:
    """WeiCom (billpsomas/rscir @1560858): each query's scores become quantiles of a normal fitted to them over the
    gallery, 0 to 1; then (1-blend) of the picture's and blend of the words'.

    Scores that are all alike say nothing: 0.5 throughout."""
    return (1 - blend) * normal_quantiles(picture_scores) + blend * normal_quantiles(words_scores)


def normal_quantiles(scores: Tensor) -> Tensor:
    """Phi of the standardised rows of `scores`."""
    return torch.special.ndtr(standardised(scores))


def standardised(scores: Tensor) -> Tensor:
    """Each row to mean 0 and deviation 1 (over n - 1, as released); a row of equal scores to 0."""
    spread = scores.std(dim=1, keepdim=True, correction=min(1, scores.shape[1] - 1))
    return (scores - scores.mean(dim=1, keepdim=True)) / spread.clamp(min=SMALL)


def superglobal_rerank(
    query: Tensor,
    gallery: Tensor,
    top: int = 400,
    neighbours: int = 9,
    beta: float = 0.15,
    *,
    as_published: bool = False,
) -> Tensor:
    """Scores (queries, gallery), float64, that put each query's nearest `top` in a new order before all others,
    which keep theirs. query (queries, dim) and gallery (n, dim) unit. A gallery smaller than `top` is all re-ranked.

    SuperGlobal (ShihaoShao-GH/SuperGlobal @8694696): within the top, each vector becomes the weighted mean of itself
    (1) and its nearest `neighbours` (beta * cosine); S1 = its cosine to the query; the first neighbours + 1 by S1
    make an expanded query e; S2 = its product with e; the score is (S1 + S2) / 2. Made for features without negative
    numbers, and queries of the gallery's own kind. Ours is adapted to signed features and queries of text: e is the
    mean, not the largest of each number; S1 and S2 are standardised before they are averaged; and a neighbour at
    more than 90 degrees counts nothing. `as_published` takes the first two back; the third
    never acts on features without negative numbers."""
    scores = (query @ gallery.T).double()
    for row, vector in zip(scores, query, strict=True):
        first = row.topk(min(top, len(gallery))).indices
        rest = row.clone()
        rest[first] = -math.inf
        again = _again(vector, gallery[first], neighbours, beta, as_published=as_published).double()
        row[first] = again - again.min() + max(float(rest.max()), -1.0) + 1
    return scores


def _again(query: Tensor, first: Tensor, neighbours: int, beta: float, *, as_published: bool) -> Tensor:
    """SuperGlobal's new scores (top,) of the vectors `first` (top, dim) for `query` (dim,)."""
    count = min(neighbours + 1, len(first))  # a vector is its own nearest
    near = (first @ first.T).clamp(min=0).topk(count, dim=1)
    weights = torch.zeros_like(first @ first.T).scatter(1, near.indices, beta * near.values).fill_diagonal_(1)
    smooth = weights @ first / weights.sum(1, keepdim=True)
    by_query = smooth @ query
    best = smooth[by_query.topk(count).indices]
    by_expanded = smooth @ (best.amax(0) if as_published else best.mean(0))
    if as_published:
        return (by_query + by_expanded) / 2
    return standardised(torch.stack([by_query, by_expanded])).mean(0)


# --- by name

LEARNED: dict[str, Callable[[int], nn.Module]] = {"gated": Gated, "transagg": TransAgg}
"""Constructors from dim."""
FREE: dict[str, Callable[..., nn.Module]] = {"plain": Plain, "pdv": Pdv, "slerp": Slerp, "sum": WeightedSum}
"""Constructors from numbers, all with defaults."""
NUMBERS = {"pdv": 3, "slerp": 1, "sum": 1}
"""How many numbers a name may carry."""
COMPOSITIONS = LEARNED | FREE


def make_composition(name: str, dim: int) -> nn.Module:
    """The composition of this name for features (batch, dim): "gated", "plain", "transagg", or with numbers
    "slerp:0.8", "sum:0.5", "pdv:1.2" (PDV-T), "pdv:1.2,1.4,0.9" (alpha_text, alpha_image, beta).

    Raises ValueError for another name, or too many numbers."""
    kind, numbers = split_name(name)
    if kind not in COMPOSITIONS:
        raise ValueError(f"no composition `{name}`; there are {', '.join(COMPOSITIONS)}")
    if len(numbers) > NUMBERS.get(kind, 0):
        raise ValueError(f"`{name}`: {kind} takes at most {NUMBERS.get(kind, 0)} numbers, not {len(numbers)}")
    return LEARNED[kind](dim) if kind in LEARNED else FREE[kind](*numbers)
