"""`python -m pocketlens_bench` is `pocketlens-bench`."""

from pocketlens_bench.cli import app

if __name__ == "__main__":
    app()
