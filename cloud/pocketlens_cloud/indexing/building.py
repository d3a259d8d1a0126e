"""A folder of pictures into the next version of a gallery.

Owns the order (next version, index, put on record); indexing itself is ingest.py's, versions are versions.py's."""

from pathlib import Path
from typing import Any

from pocketlens_wire.manifest import read_cloud

from pocketlens_cloud.gallery.versions import Record, Versions, open_to_build, to_build
from pocketlens_cloud.indexing import ingest
from pocketlens_cloud.indexing.ingest import IngestReport


def build(versions: Versions, folder: Path, bundle: Path, **how: Any) -> tuple[str, IngestReport]:
    """Index `folder` into the next version, or go on with one whose building was cut short; (its name, what was done).

    `how`: as for ingest.index. The live version is not touched, nor is what is live changed.
    Raises GalleryError, BadBundle, SpaceMismatch."""
    if not ingest.list_pictures(folder):
        raise ingest.no_pictures(folder)
    manifest = read_cloud(bundle)
    name, resumed = to_build(versions)
    gallery = open_to_build(
        versions,
        name,
        dim=manifest.dim,
        vectors=manifest.targets,
        gallery_space=manifest.gallery_space,
        resumed=resumed,
    )
    try:
        journal = versions.journal(name)
        journal.parent.mkdir(parents=True, exist_ok=True)
        report = ingest.index(folder, gallery, bundle, journal=journal, **how)
    finally:
        gallery.close()
    versions.note(name, Record(size=report.size, generation=report.generation))
    return name, report
