"""The device's key: from a file or the environment to the server's metadata, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ID, SECRET = "0123456789ab", "Qx7-_" * 8 + "abc"
KEY = f"plk_{ID}_{SECRET}"


@pytest.fixture
def seen() -> list[str | None]:
    """The `authorization` of each question that came."""
    return []


@pytest.fixture
def service(service: Any, seen: list[str | None]) -> Any:
    answer = service.Search

    def noting(request: Any, context: Any) -> Any:
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        return answer(request, context)

    service.Search = noting
    return service


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("POCKETLENS_API_KEY", raising=False)
    (tmp_path / "device.key").write_text(f"{KEY}\n")
    return tmp_path / "device.key"


def test_a_question_bears_the_key_of_the_file_or_else_of_the_environment(
    run, server, photo, key_file, seen, monkeypatch, tmp_path
):
    ask = ("search", photo, "--server", server)
    assert run(*ask).code == 0
    assert run(*ask, "--api-key-file", key_file).code == 0
    monkeypatch.setenv("POCKETLENS_API_KEY", KEY.replace(ID, "f" * 12))
    assert run(*ask).code == 0
    assert run(*ask, "--api-key-file", key_file).code == 0
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / photo.name).write_bytes(photo.read_bytes())
    batch = run("batch", tmp_path / "pictures", "--server", server, "-o", tmp_path / "out.jsonl")
    assert batch.code == 0, batch.err
    other = f"Bearer {KEY}".replace(ID, "f" * 12)
    assert seen == [None, f"Bearer {KEY}", other, f"Bearer {KEY}", other]


@pytest.mark.parametrize("command", [("search",), ("batch",), ("doctor",), ("outbox", "send")])
def test_no_command_takes_a_key_itself(run, command):
    told = run(*command, "--help").out
    assert "--api-key-file" in told and "--api-key " not in told


def test_what_goes_wrong_does_not_show_the_key(run, photo, key_file, seen, tmp_path):
    clear = run("search", photo, "--server", "192.0.2.7:1", "--api-key-file", key_file)
    assert clear.code == 1
    assert "192.0.2.7:1: a key is not sent over a connection that is not encrypted" in clear.err
    (tmp_path / "torn.key").write_text(KEY[:-1])
    torn = run("search", photo, "--api-key-file", tmp_path / "torn.key")
    assert torn.code == 1 and "torn.key: does not hold a key" in torn.err
    local = run("search", photo, "--local-gallery", tmp_path, "--api-key-file", key_file)
    assert local.code == 2 and "asks no server" in local.err
    assert SECRET[:20] not in clear.err + torn.err + local.err
    assert seen == []
