"""`pocketlens-cloud`: one file per command. Each command imports what it needs, so that --help is quick."""

import os

# gRPC's core writes raw lines to stderr, into the log of `serve`: for each failed handshake one, which any stranger can
# make, and for what we say ourselves. Read as it is loaded, so before every other import; workers inherit it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from pocketlens_cloud.cli import config, describe, doctor, gallery, index, keys, pictures, serve, top
from pocketlens_cloud.cli.root import app

__all__ = ["app", "config", "describe", "doctor", "gallery", "index", "keys", "pictures", "serve", "top"]
