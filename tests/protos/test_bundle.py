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


def test_a_self_contained_program_has_its_bundle_beside_it(monkeypatch, tmp_path):
    monkeypatch.delenv("POCKETLENS_BUNDLE", raising=False)
    monkeypatch.setattr("sys.frozen", True, raising=False)
    (tmp_path / "app").mkdir()
    (tmp_path / "app/pocketlens-edge").touch()
    (tmp_path / "link").symlink_to(tmp_path / "app/pocketlens-edge")
    monkeypatch.setattr("sys.executable", str(tmp_path / "link"))
    with pytest.raises(BadBundle, match=r"app/bundle: no such folder.*--bundle"):
        default_bundle()
    (tmp_path / "app/bundle").mkdir()
    assert default_bundle() == tmp_path / "app/bundle"
