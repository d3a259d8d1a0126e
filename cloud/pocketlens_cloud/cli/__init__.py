"""`pocketlens-cloud`: one file per command. Each command imports what it needs, so that --help is quick."""

from pocketlens_cloud.cli import describe, doctor, gallery, index, keys, serve
from pocketlens_cloud.cli.root import app

__all__ = ["app", "describe", "doctor", "gallery", "index", "keys", "serve"]
