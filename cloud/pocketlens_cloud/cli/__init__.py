"""`pocketlens-cloud`: one file per command. Each command imports what it needs, so that --help is quick."""

from pocketlens_cloud.cli import config, describe, doctor, gallery, index, keys, pictures, serve, top
from pocketlens_cloud.cli.root import app

__all__ = ["app", "config", "describe", "doctor", "gallery", "index", "keys", "pictures", "serve", "top"]
