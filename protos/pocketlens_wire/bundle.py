"""Which bundle to use when nobody named one: the same answer on device and service.

Owns the search order only; reading and verifying a bundle is manifest.py's."""

import importlib.util
import os
from pathlib import Path
from typing import Final

from pocketlens_wire.errors import BadBundle

ENVIRONMENT: Final = "POCKETLENS_BUNDLE"


def default_bundle() -> Path:
    """The folder in `$POCKETLENS_BUNDLE`, else the sample bundle of this installation.

    The samples package is located, not imported. Raises BadBundle, naming `--bundle`, when there is neither."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    samples = importlib.util.find_spec("pocketlens_samples")
    for folder in (samples.submodule_search_locations or ()) if samples else ():
        if (bundle := Path(folder) / "bundle").is_dir():
            return bundle
    raise BadBundle(
        f"No bundle: the sample bundle is not installed here and {ENVIRONMENT} is not set. "
        "Name a bundle's folder with --bundle."
    )
