"""Turn one picture into its sentence tokens.

Owns the order of the steps (open, fit, run, check), not their insides: pixels are the wire room's `pictures`,
the graph is runtime.py, or engines.py. Called by cli.py, doctor.py, the demo and the benchmarks; knows no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import EdgeManifest, read_edge, resolve_half
from pocketlens_wire.pictures import fit, open_picture, take_picture

from pocketlens_edge.engines import choose, default_folder
from pocketlens_edge.runtime import Runnable

PIXELS, SENTENCE = "pixels", "sentence"  # the graph's tensors

Picture: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]"
"""A file by its path, its bytes or opened; a picture of Pillow's; a frame uint8 (height, width, 3) in RGB."""


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
        provider: the ONNX Runtime execution provider that runs it, or the TensorRT of its engine.
        threads: threads it was given.
        notes: what a user should know of how the provider was chosen.
    """

    def __init__(
        self,
        manifest: EdgeManifest,
        form: str,
        graph: Runnable,
        *,
        tolerance: float | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        _expect(graph)
        self.manifest = manifest
        self.form = form
        self.encoder_id = manifest.graphs[form].encoder
        self.tolerance = manifest.graphs[form].tolerance if tolerance is None else tolerance
        self.notes = list(notes)
        self.provider = graph.provider
        self.threads = graph.threads
        self._graph = graph

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        *,
        threads: int = 1,
        precision: str | None = None,
        providers: Sequence[str] | None = None,
        engines: Path | None = None,
    ) -> Encoder:
        """Open the edge half of `bundle` (or `bundle` itself, if it is that half).

        Every file's hash is checked first. `precision` is a key of the manifest's graphs, None = the most exact
        there is; `providers` are ONNX Runtime's names, short or full, or `engine` or `auto` (engines.py), None = CPU;
        `engines` is the folder of TensorRT engines, None = the user's. Raises BadBundle, naming the file or key."""
        folder = resolve_half(Path(bundle), "edge")
        manifest = read_edge(folder)
        form = manifest.form(precision)
        described = manifest.graphs[form]
        chosen = choose(
            folder / described.file,
            form,
            described,
            providers=providers,
            threads=threads,
            folder=engines or default_folder(),
        )
        return cls(manifest, form, chosen.graph, tolerance=chosen.tolerance, notes=chosen.notes)

    def encode(self, picture: Picture) -> NDArray[np.float32]:
        """Tokens (token_count, token_width) of one picture of any size. Threads may share the encoder.

        Raises BadPicture for what is no picture, BadBundle as `encode_pixels`."""
        return self.encode_timed(picture).tokens

    def encode_timed(self, picture: Picture, *, name: str | None = None) -> Encoded:
        """The same, timing each stage. name: what to call the picture in errors."""
        start = perf_counter()
        opened_picture = self._open(picture, name)
        opened = perf_counter()
        pixels = fit(opened_picture, self.manifest.picture)
        fitted = perf_counter()
        tokens = self.encode_pixels(pixels[None])[0]
        encoded = perf_counter()
        stages = {"open": opened - start, "fit": fitted - opened, "encode": encoded - fitted}
        return Encoded(tokens=tokens, times_ms={stage: 1e3 * seconds for stage, seconds in stages.items()})

    def _open(self, picture: Picture, name: str | None) -> Image.Image:
        if isinstance(picture, Image.Image | np.ndarray):
            return take_picture(picture, name=name or "picture")
        return open_picture(picture, name=name, near=self.manifest.picture.side)

    def save(self, tokens: NDArray[np.float32], path: Path) -> None:
        """Write tokens (token_count, token_width) and the two ids that go with them to an .npz, whole or not at all."""
        unfinished = path.with_name(f".{os.getpid()}.unfinished")  # short: a picture's name may be as long as names get
        try:
            with unfinished.open("wb") as file:
                space, encoder = np.array(self.manifest.token_space), np.array(self.encoder_id)
                np.savez(file, tokens=tokens, token_space=space, encoder=encoder)
            os.replace(unfinished, path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the caller knows
        finally:
            unfinished.unlink(missing_ok=True)

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


def _expect(graph: Runnable) -> None:
    """Raise BadBundle unless the graph has the two tensors of an encoder."""
    for side, tensors, name, kind in (
        ("input", graph.inputs, PIXELS, "tensor(uint8)"),
        ("output", graph.outputs, SENTENCE, "tensor(float)"),
    ):
        if name not in tensors or tensors[name][0] != kind:
            found = ", ".join(f"`{other}` {shape[0]}" for other, shape in tensors.items())
            raise BadBundle(f"{graph.path}: expected {side} `{name}` {kind}, found {found}. Get the bundle again.")
