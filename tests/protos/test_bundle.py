"""The bundle nobody named is the same for device and service."""

from __future__ import annotations

import pytest
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import BadBundle


def test_the_default_bundle_is_the_named_one(monkeypatch, tmp_path):
    monkeypatch.setenv("POCKETLENS_BUNDLE", str(tmp_path))
    assert default_bundle() == tmp_path


def test_without_any_bundle_the_error_names_the_option(monkeypatch):
    monkeypatch.delenv("POCKETLENS_BUNDLE", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadBundle, match="--bundle"):
        default_bundle()
