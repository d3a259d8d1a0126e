"""The card of a result: traceable, and silent about whose machine it was."""

import getpass
import json
import platform
import re
import subprocess
from pathlib import Path

import pytest
from pocketlens_bench import checkout
from pocketlens_bench.cli import app
from pocketlens_bench.command_line import shown_arguments, typed_command
from pocketlens_bench.conditions import conditions
from pocketlens_wire.bundle import default_bundle


def test_a_card_names_bundle_machine_versions_and_commit():
    card = conditions(default_bundle(), load=0.5, seeds={"bootstrap": 3})
    assert re.fullmatch(r"enc-[0-9a-f]{16}", card["bundle"]["encoder"])
    assert card["seeds"] == {"bootstrap": 3}
    assert card["machine"]["load_at_start"] == 0.5
    assert 0 <= (card["machine"]["stolen_share"] or 0) <= 1
    assert 0.1 < card["machine"]["ram_gb"] < 100_000
    assert card["versions"]["numpy"]
    assert set(card["commit"]) in ({"id", "dirty"}, {"id", "reason"})


def test_a_card_without_a_bundle_says_none():
    assert conditions(None, load=None)["bundle"] is None


def test_a_card_names_no_folder_host_or_user():
    text = json.dumps(conditions(default_bundle(), load=0.0))
    assert str(Path.home()) not in text
    assert not re.search(r'"[^"]*/(home|root|tmp|work|usr)/', text)
    for private in (platform.node(), getpass.getuser()):
        assert f'"{private}"' not in text


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("--quick", "--quick"),
        ("sample", "sample"),
        ("/data/alice/cirr", "cirr"),
        ("--root=/data/alice/cirr/", "--root=cirr"),
        (r"C:\data\cirr", "cirr"),
        ("a/b.json", "b.json"),
        (str(Path.home()), "DIR"),
        ("~", "DIR"),
        ("run:/data/alice/teacher", "run:teacher"),
        ("hf:/data/alice/blip", "hf:blip"),
        ("hf:Salesforce/blip-itm-base-coco", "hf:Salesforce/blip-itm-base-coco"),
        ("open_clip:ViT-B-32/openai@/data/alice/w.bin", "open_clip:ViT-B-32/openai@w.bin"),
        ("/", "DIR"),
    ],
)
def test_of_a_path_only_the_last_name_is_kept(typed, shown):
    assert list(shown_arguments([typed])) == [shown]


def test_the_command_remembers_what_was_typed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        app(["report", str(tmp_path / "nothing.json")])
    assert typed_command() == ("report", "nothing.json")


# --- commit


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout of its own that the package seems to run from."""
    module = tmp_path / "benchmarks" / "pocketlens_bench" / "checkout.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(checkout, "__file__", str(module))
    return tmp_path


def test_a_checkout_tells_its_commit_and_whether_source_changed(repository):
    clean = checkout.commit()
    assert re.fullmatch(r"[0-9a-f]{40}", clean["id"])
    assert clean["dirty"] is False
    (repository / "docs").mkdir()
    (repository / "docs" / "results.md").write_text("written anew")
    assert checkout.commit() == clean
    (repository / "benchmarks" / "new.py").write_text("")
    assert checkout.commit() == {"id": clean["id"], "dirty": True}


def test_without_a_checkout_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "lib" / "pocketlens_bench" / "checkout.py"))
    told = checkout.commit()
    assert told["id"] is None
    assert "installed" in told["reason"]


def test_without_git_the_reason_is_told(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    told = checkout.commit()
    assert told["id"] is None
    assert "no git" in told["reason"]
