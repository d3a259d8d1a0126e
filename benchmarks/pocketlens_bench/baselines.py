"""The bundle's third folder, `baselines/`: what Pocketlens is compared with.

Owns baselines.json and its proof. Devices and servers never read it; a bundle may lack it, and then the rows that
need it are left out and named. Called by accuracy.py."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.compose import Features
from pocketlens_cloud.runtime import Graph
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import describe_file

FOLDER, DESCRIPTION, FORMAT = "baselines", "baselines.json", 1


@dataclass(frozen=True)
class Baselines:
    """The two models of comparison, both trained by the same recipe as what they are compared with."""

    symmetric: Graph  # a token learner upon the large image tower
    query_head_control: Graph  # a query head trained against the `original` target

    @classmethod
    def load(cls, bundle: Path, *, threads: int | None = None) -> "Baselines | None":
        """The baselines of `bundle` (its root), verified; None if it has none. Raises BadBundle if they are wrong."""
        folder = bundle / FOLDER
        if not (folder / DESCRIPTION).is_file():
            return None
        paths = _verified(folder)
        return cls(
            symmetric=Graph(paths["symmetric"], threads=threads).require(inputs={"places"}, outputs={"sentence"}),
            query_head_control=Graph(paths["query_head_control"], threads=threads).require(
                inputs={"composed", "picture", "words"}, outputs={"query"}
            ),
        )

    def sentences(self, places: NDArray[np.float32]) -> NDArray[np.float32]:
        """Tokens (batch, k, width) from the large tower's feature map (batch, positions, channels)."""
        return self.symmetric.run(["sentence"], {"places": places})[0]

    def control(self, features: Features) -> NDArray[np.float32]:
        """Unit query vectors (batch, dim) of the tuned mode's control, to be searched in `original`."""
        feeds = {"composed": features.composed, "picture": features.picture, "words": features.words}
        return self.query_head_control.run(["query"], feeds)[0]


def _verified(folder: Path) -> dict[str, Path]:
    """Path of each named file, once its size and hash are as baselines.json says."""
    where = folder / DESCRIPTION
    try:
        description = json.loads(where.read_text(encoding="utf-8"))
        came, files = description["format"], dict(description["files"])
        named = {name: folder / files[name]["file"] for name in ("symmetric", "query_head_control")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadBundle(f"{where}: not a description of baselines ({error!r}). Get the bundle again.") from error
    if came != FORMAT:
        raise BadBundle(
            f"{where}: key `format` is {came}, this Pocketlens reads {FORMAT}. Upgrade, or take its bundle."
        )
    for name, path in named.items():
        if not path.is_file() or asdict(describe_file(path)) != files[name]:
            raise BadBundle(
                f"{path}: not the file that key `files.{name}` of {DESCRIPTION} means. Get the bundle again."
            )
    return named
