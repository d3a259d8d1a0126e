"""Hypothesis: the same examples every run, no time limit each (CI machines stall), nothing left on disk."""

from hypothesis import settings

settings.register_profile("pocketlens", deadline=None, derandomize=True, database=None)
settings.load_profile("pocketlens")
