"""How many tokens a picture should become, and how many bits each number needs on its way.

One student per number of tokens, trained by the same recipe beside the bundle's own; each asks with its tokens in every
precision. Zero-shot alone: the tuned mode's head was trained with the bundle's own student. Owns rows, bytes and
comparisons; the questions are questions.py's, the students students.py's. Called by cli/tokens.py."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.questions import Mode, question
from pocketlens_samples.queries import COMPOSED_SEED, SKETCH_SEED
from pocketlens_wire.tokens import Encoding, quantise

from pocketlens_bench import world
from pocketlens_bench.accuracy import HONESTY
from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.lab import SENT, Lab, Tokens, sent
from pocketlens_bench.questions import (
    METRICS,
    RANKING,
    Judged,
    Questions,
    about_pictures,
    composed,
    drawn,
    figures,
    minus,
    sketches,
)
from pocketlens_bench.students import Student, gathered
from pocketlens_bench.world import OnProgress, Sizes, silently

GALLERY = 30_000  # 6,000, where `accuracy` asks, leaves a good student too little to miss
FULL = replace(world.FULL, gallery=GALLERY, sketch_gallery=GALLERY)
QUICK = world.QUICK
TOP = 10
SHARES = np.linspace(0.1, 1.0, 46)  # of a token's largest number, tried as the highest level when a scale is fitted


@dataclass(frozen=True)
class Unoffered:
    """A precision that the wire does not offer: bits of a number, levels on either side of 0, and whether the scale is
    fitted instead of the codec's own."""

    bits: int
    levels: int
    fitted: bool = False


UNOFFERED = {"int3": Unoffered(3, 3), "int2": Unoffered(2, 1), "int2 fitted": Unoffered(2, 1, fitted=True)}
UNOFFERED_SAYS = (
    "int3 and int2 are not offered on the wire: computed by the codec's own rule (one scale per token, its largest "
    "number becomes the highest level; int3: -3 to 3, int2: -1, 0, 1), bytes as if packed without gaps. int2 fitted: "
    "the scale with the least squared error instead, larger numbers cut off; the receiver would see no difference"
)
WHY_THIS_GALLERY = (
    f"By default {GALLERY:,} pictures in each gallery: among the 6,000 of `accuracy` the students stand too near the "
    "ceiling to be told apart"
)
ONE_TRAINING = "one training per number of tokens: what another seed would change is not in the intervals"
PRECISIONS = (*(str(encoding) for encoding in Encoding), *UNOFFERED)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of asking: a student and a precision; bytes are means over the questions."""

    tokens: int
    precision: str
    token_bytes: float
    request_bytes: float
    judged: Judged

    @property
    def name(self) -> str:
        return way_name(self.tokens, self.precision)


def way_name(tokens: int, precision: str) -> str:
    return f"k={tokens}, {precision}"


def measure(
    bundle: Path,
    *,
    students: Sequence[Path] | None = None,
    sizes: Sizes = FULL,
    seed: int = 0,
    threads: int | None = None,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench tokens` says, as one JSON object; percentages with 95 % intervals.

    students: further device halves; None: those shipped. `seed` draws the bootstrap. Raises BadBundle."""
    load, started = load_now(), perf_counter()
    threads = threads or os.cpu_count() or 1
    found, left_out = gathered(bundle, students)
    lab = Lab.open(bundle, threads=threads)
    kinds = [*about_pictures(lab, sizes, on_progress), sketches(lab, sizes, on_progress)]
    own = lab.encoder.manifest.token_count
    tables = [_table(kind, _ways(lab, found, kind, on_progress), own, seed) for kind in kinds]
    return {
        "benchmark": "tokens",
        "set": "sample",
        "unit": "percent",
        "honesty": HONESTY,
        "ranking": RANKING,
        "precisions": UNOFFERED_SAYS,
        "why_this_gallery": WHY_THIS_GALLERY,
        "training": ONE_TRAINING,
        "own": own,
        "students": [_described(student) for student in found],
        "left_out": left_out,
        "tables": tables,
        "lost": [said for table in tables for said in _lost(table, own)],
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - started, 1),
            threads={"device": 1, "devices at a time": threads, "cloud": threads},
            providers={"device": lab.encoder.provider, "cloud": lab.composer.provider},
            seeds={"composed": COMPOSED_SEED, "sketch": SKETCH_SEED, "bootstrap": seed},
            sizes=asdict(sizes),
        ),
    }


def _described(student: Student) -> dict[str, Any]:
    encoder = student.encoder
    return {
        "tokens": student.tokens,
        "encoder": encoder.encoder_id,
        "name": encoder.manifest.name,
        "own": student.is_own,
        "graph_bytes": encoder.manifest.graphs[encoder.form].bytes,
        "million_multiply_adds": None if student.multiply_adds is None else student.multiply_adds / 1e6,
    }


# --- rows


def _ways(lab: Lab, students: Sequence[Student], kind: Questions, on_progress: OnProgress) -> list[Way]:
    files = drawn(lab, kind.pictures, f"{kind.title}: pictures", on_progress)
    ways: list[Way] = []
    for student in students:
        tokens = lab.tokens(files, student.encoder)
        for precision in PRECISIONS:
            ways.append(_way(lab, kind, student.encoder, tokens, precision))
            on_progress(f"ask {kind.title}", len(ways), len(students) * len(PRECISIONS))
    return ways


def _way(lab: Lab, kind: Questions, encoder: Encoder, tokens: Sequence[Tokens], precision: str) -> Way:
    arrived = received(tokens, precision)
    vectors = composed(lab, list(zip(arrived, kind.words, strict=True)))
    sizes = [request_bytes(encoder, *asked, precision) for asked in zip(tokens, kind.words, strict=True)]
    of_tokens, of_request = np.mean(sizes, axis=0)
    return Way(
        tokens=encoder.manifest.token_count, precision=precision, token_bytes=float(of_tokens),
        request_bytes=float(of_request), judged=kind.judged(vectors),
    )  # fmt: skip


def received(tokens: Sequence[Tokens], precision: str) -> list[Tokens]:
    """The tokens (k, width) as the cloud would have them."""
    if precision not in UNOFFERED:
        return sent(tokens, Encoding(precision))
    rule = UNOFFERED[precision]
    if rule.fitted:
        return [fitted(token, rule.levels) for token in tokens]
    return [_restored(*quantise(token, rule.levels)) for token in tokens]


def _restored(whole: NDArray[np.int8], scales: NDArray[np.float32]) -> Tokens:
    return (whole * scales.astype(np.float64)[:, None]).astype(np.float32)


def fitted(token: Tokens, levels: int) -> Tokens:
    """Tokens (k, width) from whole numbers in [-levels, levels], each with the scale, of those tried, that leaves the
    least squared error."""
    peaks = np.abs(token).max(axis=1, keepdims=True)
    scales = np.maximum(SHARES[:, None, None] * peaks / levels, np.finfo(np.float32).tiny)  # (tried, k, 1)
    tried = np.clip(np.rint(token / scales), -levels, levels) * scales
    best = np.square(tried - token).sum(axis=2).argmin(axis=0)
    return tried[best, np.arange(len(token))].astype(np.float32)


def request_bytes(encoder: Encoder, tokens: Tokens, words: str, precision: str) -> tuple[int, int]:
    """Bytes of the tokens with their scales, and of the serialised request message around them."""
    offered = precision not in UNOFFERED
    request = question(
        token_space=encoder.manifest.token_space, encoder_id=encoder.encoder_id, tokens=tokens, words=words,
        encoding=Encoding(precision) if offered else Encoding.INT4, top=TOP, mode=Mode.ZERO_SHOT, where={},
    )  # fmt: skip
    if not offered:
        request.sentence.data = bytes(
            -(-tokens.size * UNOFFERED[precision].bits // 8)
        )  # scales as int4 has them, one per token
    return len(request.sentence.data) + len(request.sentence.scales), request.ByteSize()


# --- the table


def _table(kind: Questions, ways: Sequence[Way], own: int, seed: int) -> dict[str, Any]:
    judged = {way.name: way.judged for way in ways}
    pairs = [*_by_number(ways, own), *_by_precision(ways)]
    return {
        "key": kind.key,
        "title": kind.title,
        "queries": len(kind.words),
        "gallery": kind.gallery_size,
        "rows": [
            {
                "name": way.name,
                "tokens": way.tokens,
                "precision": way.precision,
                "offered": way.precision not in UNOFFERED,
                "token_bytes": round(way.token_bytes, 1),
                "request_bytes": round(way.request_bytes, 1),
                **figures(way.judged, seed=seed),
            }
            for way in ways
        ],
        "differences": [
            {"of": of, "over": over, "about": about, **figures(minus(judged[of], judged[over]), seed=seed)}
            for of, over, about in pairs
        ],
    }


def _by_number(ways: Sequence[Way], own: int) -> list[tuple[str, str, str]]:
    """Each number of tokens against the bundle's own, as they travel by default."""
    counts = sorted({way.tokens for way in ways} - {own})
    return [(way_name(count, SENT), way_name(own, SENT), "tokens") for count in counts]


def _by_precision(ways: Sequence[Way]) -> list[tuple[str, str, str]]:
    """Each precision against float32, student by student."""
    return [
        (way.name, way_name(way.tokens, Encoding.F32), "precision") for way in ways if way.precision != Encoding.F32
    ]


def _lost(table: dict[str, Any], own: int) -> list[str]:
    """Where the way that Pocketlens goes by default, the bundle's student in int8, is beaten beyond noise."""
    default = way_name(own, SENT)
    said: list[str] = []
    for row in table["differences"]:
        for metric in METRICS:
            figure, title = row[metric], f"{table['title']}, {metric}"
            if row["over"] == default and figure["low"] > 0:
                said.append(f"{title}: {row['of']} is {figure['value']:.1f} points ahead of {default}")
            if row["of"] == default and figure["high"] < 0:
                said.append(f"{title}: {default} is {-figure['value']:.1f} points behind {row['over']}")
    return said
