"""The question whose answer is known: the first of the bundle's golden vectors that has a picture and words.

What it must find is asked of the gallery with the golden query vector itself, so that it holds for every gallery and
every generation of it. health.py asks it and judges."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pocketlens_wire.errors import GalleryError
from pocketlens_wire.manifest import CloudManifest, resolve_half
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.compose import VECTOR_OF, Mode
from pocketlens_cloud.gallery.interface import Gallery, Search

JITTER = 1e-5  # relative; a question asked before may be answered from memory, and the tower is what is to be tried
SLACK = 0.01  # of a score: an approximate search may find another best picture for nearly the same vector


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A question and its answer.

    question: as it is to be asked now; expected: the score of its best hit, asked of the gallery, which blocks;
    margin: by how much the towers' answer may differ."""

    question: Callable[[], pb.SearchRequest]
    expected: Callable[[], float]
    margin: float


def golden_canary(bundle: Path, manifest: CloudManifest, gallery: Gallery, mode: Mode, precision: str) -> Canary:
    """The canary of a bundle (its root or its cloud half) on a gallery, asked in `mode` of the `precision` tower."""
    with np.load(resolve_half(bundle, "cloud") / manifest.golden.file, allow_pickle=False) as golden:
        at = next((i for i, words in enumerate(golden["words"]) if str(words)), 0)
        sentence, words = golden["sentence"][at], str(golden["words"][at])
        vector = golden["query" if mode == "tuned" else "composed"][at]
    noise = np.random.default_rng()

    def question() -> pb.SearchRequest:
        shaken = sentence * (1 + JITTER * noise.standard_normal(sentence.shape, np.float32))
        return pb.SearchRequest(
            token_space=manifest.token_space,
            encoder=manifest.encoders[0],
            sentence=pack(shaken, Encoding.F32),
            words=words,
            mode=pb.MODE_TUNED if mode == "tuned" else pb.MODE_ZERO_SHOT,
            top=1,
        )

    def expected() -> float:
        hits = gallery.search(Search(vector=vector, name=VECTOR_OF[mode], top=1, payload=()))
        if not hits:
            raise GalleryError(f"{gallery.title}: a search finds nothing")
        return hits[0].score

    # Each of the vector's numbers may differ by the tower's tolerance; the gallery's vectors have length 1.
    margin = manifest.text_tower[precision].tolerance * float(np.sqrt(len(vector))) + SLACK
    return Canary(question=question, expected=expected, margin=margin)
