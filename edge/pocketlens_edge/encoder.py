"""Turn one picture into its sentence tokens.

Owns the order of the steps (open, fit, run, check), not their insides: pixels are the wire room's `pictures`,
the graph is runtime.py. Called by cli.py, doctor.py, the demo and the benchmarks; knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import EdgeManifest, read_edge, resolve_half
from pocketlens_wire.pictures import fit, open_picture

from pocketlens_edge.runtime import Graph

PIXELS, SENTENCE = "pixels", "sentence"  # the graph's tensors


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One picture's tokens and what each step took.

    tokens: float32 (token_count, token_width), finite.
    times_ms: milliseconds by stage: `open` (read, decode), `fit` (to the encoder's square), `encode` (graph).
    """

    tokens: NDArray[np.float32]
    times_ms: dict[str, float]


class Encoder:
    """The device's picture encoder, from a verified bundle.

    Attributes:
        manifest: what the bundle says of itself; its `token_space` goes with every query.
        form: the form of the encoder that runs, such as fp32 or int8.
        encoder_id: goes with every query whose tokens it made.
        tolerance: largest difference of a golden number allowed to this form.
        provider: the ONNX Runtime execution provider that runs it.
        threads: threads it was given.
    """

    def __init__(self, manifest: EdgeManifest, form: str, graph: Graph) -> None:
        _expect(graph)
        self.manifest = manifest
        self.form = form
        self.encoder_id = manifest.graphs[form].encoder
        self.tolerance = manifest.graphs[form].tolerance
        self.provider = graph.provider
        self.threads = graph.threads
        self._graph = graph

    @classmethod
    def load(
        cls,
        bundle: Path,
        *,
        threads: int = 1,
        precision: str | None = None,
        providers: Sequence[str] | None = None,
    ) -> Encoder:
        """Open the edge half of `bundle` (or `bundle` itself, if it is that half).

        Every file's hash is checked first. `precision` is a key of the manifest's graphs, None = the most exact
        there is; `providers` are ONNX Runtime's names, short or full, None = CPU. Raises BadBundle, naming the file or
        key."""
        folder = resolve_half(bundle, "edge")
        manifest = read_edge(folder)
        form = manifest.form(precision)
        graph = Graph(folder / manifest.graphs[form].file, threads=threads, providers=providers)
        return cls(manifest, form, graph)

    def encode(self, picture: Image.Image) -> NDArray[np.float32]:
        """Tokens (token_count, token_width) of one RGB picture of any size."""
        return self.encode_pixels(fit(picture, self.manifest.picture)[None])[0]

    def encode_timed(self, source: Path | bytes | BinaryIO, *, name: str | None = None) -> Encoded:
        """Open and encode a picture file, timing each stage. Raises BadPicture, calling the file `name`."""
        start = perf_counter()
        picture = open_picture(source, name=name, near=self.manifest.picture.side)
        opened = perf_counter()
        pixels = fit(picture, self.manifest.picture)
        fitted = perf_counter()
        tokens = self.encode_pixels(pixels[None])[0]
        encoded = perf_counter()
        stages = {"open": opened - start, "fit": fitted - opened, "encode": encoded - fitted}
        return Encoded(tokens=tokens, times_ms={stage: 1e3 * seconds for stage, seconds in stages.items()})

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Tokens (n, token_count, token_width) of fitted RGB pixels, uint8 (n, side, side, 3).

        Raises ValueError for other pixels (a caller's mistake) and BadBundle if the graph answers with
        another shape or with values that are not finite: such tokens must never leave the device."""
        side = self.manifest.picture.side
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels must be uint8 (n, {side}, {side}, 3), not {pixels.dtype} {pixels.shape}")
        (sentence,) = self._graph.run([SENTENCE], {PIXELS: pixels})
        shape = (len(pixels), self.manifest.token_count, self.manifest.token_width)
        if sentence.shape != shape:
            raise BadBundle(
                f"{self._graph.path}: gave tokens of shape {sentence.shape}; its manifest says {shape}. "
                "Get the bundle again."
            )
        if not np.isfinite(sentence).all():
            raise BadBundle(
                f"{self._graph.path}: gave tokens that are not finite numbers on {self.provider}. "
                "Run `pocketlens-edge doctor`."
            )
        return sentence


def _expect(graph: Graph) -> None:
    """Raise BadBundle unless the graph has the two tensors of an encoder."""
    for side, tensors, name, kind in (
        ("input", graph.inputs, PIXELS, "tensor(uint8)"),
        ("output", graph.outputs, SENTENCE, "tensor(float)"),
    ):
        if name not in tensors or tensors[name][0] != kind:
            found = ", ".join(f"`{other}` {shape[0]}" for other, shape in tensors.items())
            raise BadBundle(f"{graph.path}: expected {side} `{name}` {kind}, found {found}. Get the bundle again.")
