"""`python -m pocketlens_export` is the pocketlens-export command."""

from pocketlens_export.cli import app

app(prog_name="pocketlens-export")
