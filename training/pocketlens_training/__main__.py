from pocketlens_training.cli import app

app()
