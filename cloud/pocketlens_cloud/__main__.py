"""`python -m pocketlens_cloud` is the pocketlens-cloud command."""

from pocketlens_cloud.cli import app

app(prog_name="pocketlens-cloud")
