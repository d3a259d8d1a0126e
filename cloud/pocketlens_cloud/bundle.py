"""Open the cloud half of a bundle; what a valid half is belongs to pocketlens_wire.manifest."""

from pathlib import Path

from pocketlens_wire import manifest


def open_cloud_half(bundle: Path) -> tuple[Path, manifest.CloudManifest]:
    """The folder of the cloud half in `bundle` (its root or the half itself) and its verified manifest.

    Reads every file of the half once to check its hash. Raises BadBundle."""
    folder = manifest.resolve_half(bundle, "cloud")
    return folder, manifest.read_cloud(folder)
