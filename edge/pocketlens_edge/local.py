"""A gallery on this device, searched offline.

Owns how the answering half is found: the cloud room offers it under an entry point, so that this room neither knows
that one nor loads anything of it unless asked. Its handler is the service's own, so checks, ids, answers and errors
are those of a server. Called by the command line and by whoever writes a program with this package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, Self

from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import GalleryError

from pocketlens_edge.client import Answerer

ENTRY_POINT = "pocketlens.local"  # group; what stands there is called with (gallery, bundle)


class LocalGallery(Answerer, Protocol):
    """An open gallery of this device, for `Client` and `AsyncClient`; threads may share it. A context manager."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def open_gallery(gallery: str | os.PathLike[str], bundle: str | os.PathLike[str] | None = None) -> LocalGallery:
    """Open the gallery in folder `gallery`, made by `pocketlens-cloud index`, with the cloud half of `bundle`.

    Of a folder of versions (`pocketlens-cloud gallery`) the live one is searched, and followed. bundle: None takes the
    default one. Needs the extra `pocketlens[cloud]`. One process at a time may hold a gallery, or a version.
    Raises GalleryError for a gallery that is not there, empty, damaged or held, and where the extra is not installed;
    BadBundle for a bundle without a cloud half; SpaceMismatch when the two do not belong together."""
    from importlib.metadata import entry_points  # slow to load, and every search loads this module

    gallery, bundle = Path(gallery), Path(bundle) if bundle is not None else default_bundle()
    offered = entry_points(group=ENTRY_POINT)
    if not offered:
        raise GalleryError(
            f"{gallery}: this installation of Pocketlens cannot search on the device itself. "
            "Install it with pip install 'pocketlens[cloud]', or ask a server."
        )
    try:
        open_local = next(iter(offered)).load()
    except ModuleNotFoundError as missing:
        raise GalleryError(
            f"{gallery}: searching on the device itself needs {missing.name}, which is not installed: "
            "pip install 'pocketlens[cloud]'. Or ask a server."
        ) from missing
    return open_local(gallery, bundle)
