"""A short measurement of the device's process, with real processes, upon the default bundle."""

import io
import json

import pytest
from pocketlens_bench.cli import app
from pocketlens_bench.report.console_start import print_start
from pocketlens_bench.start import PHASES, PIP, measure
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import ServerFault
from rich.console import Console


@pytest.fixture(scope="module")
def result():
    return measure(default_bundle(), rounds=5)


def test_a_request_is_sent_before_the_command_ends(result):
    query, _ = result["tables"]
    (row, *_) = query["rows"]
    assert row["name"] == f"{PIP}, fp32"
    assert len(row["runs"]) == 5
    for run in row["runs"]:
        assert 20 < run["request_ms"] < run["whole_ms"]
        assert 40 < run["peak_mb"] < 500, "of another process, or in another unit"
    assert row["request_ms"] <= row["request_p95_ms"]
    assert row["peak_mb"] == pytest.approx(max(run["peak_mb"] for run in row["runs"]), abs=0.01)


def test_every_phase_takes_its_part(result):
    rows = {row["name"]: row for row in result["tables"][1]["rows"]}
    assert tuple(rows) == PHASES
    assert all(row["phase_ms"] > 0 for row in rows.values()), "a step was not met: it goes by another name now"
    assert sum(row["part"] for row in rows.values()) == pytest.approx(1)


def test_the_result_is_json_and_readable(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["left_out"] == ["the self-contained program: none was named with --binary"]
    assert result["conditions"]["versions"]["typer"]
    page = io.StringIO()
    print_start(Console(file=page, width=90), result)
    assert "load the graph" in page.getvalue()
    assert "…" not in page.getvalue()


def test_a_program_that_does_not_ask_is_refused_with_its_words(tmp_path):
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\necho no picture today >&2; exit 3\n")
    mute.chmod(0o755)
    with pytest.raises(ServerFault, match=r"mute was to ask one question and left with 3 after 0.*no picture today"):
        measure(default_bundle(), rounds=5, binary=mute)


def test_a_program_that_is_not_there_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as left:
        app(["start", "--binary", "/no/such/program"])
    assert left.value.code == 2
    assert "/no/such/program" in capsys.readouterr().err
