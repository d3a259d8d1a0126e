"""The loaded parts of one bundle, and what they make of picture files.

Owns the way from a JPEG to sentence tokens (the device's, or the symmetric baseline's) and to gallery vectors.
Called by accuracy.py and shelf.py; knows no question and no metric."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.runtime import Graph
from pocketlens_cloud.towers import ImageTower
from pocketlens_edge.encoder import Encoder
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.pictures import fit, open_picture
from pocketlens_wire.tokens import Encoding, pack, unpack
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.baselines import Baselines

SENT = Encoding.INT8  # how tokens travel by default
BATCH = 64  # pictures in one run of the image tower

Vectors = NDArray[np.float32]  # (count, dim), unit rows
Tokens = NDArray[np.float32]  # (k, width)


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The loaded parts of one bundle."""

    encoder: Encoder
    int8: Encoder | None  # the same student in int8, if the bundle has it
    composer: Composer
    tower: ImageTower
    places: Graph  # the image tower again, for its third output
    baselines: Baselines | None
    threads: int

    @classmethod
    def open(cls, bundle: Path, *, threads: int) -> "Lab":
        folder, manifest = open_cloud_half(bundle)
        encoder = Encoder.load(bundle, threads=1)
        return cls(
            encoder=encoder,
            int8=Encoder.load(bundle, threads=1, precision="int8") if "int8" in encoder.manifest.graphs else None,
            composer=Composer.load(bundle, threads=threads),
            tower=ImageTower(folder, manifest, threads=threads),
            places=Graph(folder / manifest.image_tower["fp32"].file, threads=threads),
            baselines=Baselines.load(bundle, threads=threads),
            threads=threads,
        )

    def tokens(self, files: Sequence[bytes], encoder: Encoder | None = None) -> list[Tokens]:
        """The device: sentence tokens (k, width) of each picture file; by another student than the bundle's if given.

        Each picture goes through alone and with one thread, as on a device; several devices work at a time."""
        student = encoder or self.encoder
        near = student.manifest.picture.side
        with ThreadPoolExecutor(self.threads) as devices:
            return list(devices.map(lambda file: student.encode(open_picture(file, near=near)), files))

    def images(self, files: Sequence[bytes]) -> Iterator[dict[str, Vectors]]:
        """The cloud's indexing: named gallery vectors of each batch of picture files."""
        for start in range(0, len(files), BATCH):
            yield self.tower.vectors(self.pixels(files[start : start + BATCH]))

    def image(self, files: Sequence[bytes]) -> Vectors:
        """The large tower's unit vectors."""
        return np.concatenate([batch["original"] for batch in self.images(files)])

    def symmetric_tokens(self, files: Sequence[bytes]) -> list[Tokens]:
        """Tokens of the symmetric baseline; they are made in the cloud, so no wire is between."""
        return self.large(files)[1]

    def large(self, files: Sequence[bytes]) -> tuple[Vectors, list[Tokens]]:
        """The large tower's unit vectors and the symmetric baseline's tokens, from one run of the tower."""
        assert self.baselines is not None  # the caller asked
        vectors: list[Vectors] = []
        tokens: list[Tokens] = []
        for start in range(0, len(files), BATCH):
            image, places = self.places.run(["image", "places"], {"pixels": self.pixels(files[start : start + BATCH])})
            vectors.append(image)
            tokens.extend(self.baselines.sentences(places))
        if len(tokens[0]) != self.encoder.manifest.token_count:
            raise BadBundle(
                f"the symmetric baseline gives {len(tokens[0])} tokens, the encoder "
                f"{self.encoder.manifest.token_count}; they must have the same number. Export the bundle again."
            )
        return np.concatenate(vectors), tokens

    def pixels(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        """(batch, side, side, 3) RGB, as the large tower sees them."""
        spec = self.composer.manifest.picture
        return np.stack([fit(open_picture(file, near=spec.side), spec) for file in files])


def sent(tokens: Sequence[Tokens], encoding: Encoding = SENT) -> list[Tokens]:
    """The tokens as the cloud receives them: packed, serialised, parsed, unpacked."""
    return [unpack(pb.Sentence.FromString(pack(token, encoding).SerializeToString())) for token in tokens]
