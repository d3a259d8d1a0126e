"""Find the cloud half of a bundle and read its manifest.

Owns where the default bundle lies; what a valid half is belongs to pocketlens_wire.manifest."""

import os
from importlib.util import find_spec
from pathlib import Path

from pocketlens_wire import manifest
from pocketlens_wire.errors import BadBundle

ENVIRONMENT_KEY = "POCKETLENS_BUNDLE"


def default_bundle() -> Path:
    """The bundle named by POCKETLENS_BUNDLE, else the committed sample bundle.

    Raises BadBundle where neither is there."""
    if named := os.environ.get(ENVIRONMENT_KEY):
        return Path(named)
    samples = find_spec("pocketlens_samples")  # locates the package without running it
    for home in (samples and samples.submodule_search_locations) or ():
        if (bundle := Path(home) / "bundle").is_dir():
            return bundle
    raise BadBundle(
        f"no bundle was named and the sample bundle is not installed here: give --bundle DIR or set {ENVIRONMENT_KEY}"
    )


def open_cloud_half(bundle: Path) -> tuple[Path, manifest.CloudManifest]:
    """The folder of the cloud half in `bundle` (its root or the half itself) and its verified manifest.

    Reads every file of the half once to check its hash. Raises BadBundle."""
    folder = manifest.resolve_half(bundle, "cloud")
    return folder, manifest.read_cloud(folder)
