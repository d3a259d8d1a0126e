"""`python -m pocketlens_edge` is `pocketlens-edge`."""

from pocketlens_edge.cli import app

app()
