"""Which bundle to use when nobody named one: the same answer on device and service.

Owns the search order only; reading and verifying a bundle is manifest.py's."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

from pocketlens_wire.errors import BadBundle

ENVIRONMENT: Final = "POCKETLENS_BUNDLE"


def default_bundle() -> Path:
    """The folder in `$POCKETLENS_BUNDLE`, else `bundle` beside the self-contained program, else the sample bundle of
    this installation.

    The samples package is located, not imported. Raises BadBundle, naming `--bundle`, when there is none."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    if getattr(sys, "frozen", False):  # no Python here: PyInstaller made this program
        beside = Path(sys.executable).resolve().with_name("bundle")
        if beside.is_dir():
            return beside
        raise BadBundle(f"{beside}: no such folder, and {ENVIRONMENT} is not set. Name a bundle with --bundle.")
    samples = importlib.util.find_spec("pocketlens_samples")
    for folder in (samples.submodule_search_locations or ()) if samples else ():
        if (bundle := Path(folder) / "bundle").is_dir():
            return bundle
    raise BadBundle(
        f"No bundle: the sample bundle is not installed here and {ENVIRONMENT} is not set. "
        "Name a bundle's folder with --bundle."
    )
