"""The command's edges: help, wrong usage, plain errors."""

import pytest
from pocketlens_bench.cli import app


def run(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        app(arguments)
    return left.value.code, capsys.readouterr()


def test_help_teaches(capsys):
    code, said = run(["accuracy", "--help"], capsys)
    assert code == 0
    for option in ("--set", "--bundle", "--json", "--out", "--quick", "--seed"):
        assert option in said.out
    assert "--rounds" in run(["latency", "--help"], capsys)[1].out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["accuracy", "--set", "cirr"], 2, "cirr"),
        (["accuracy", "--out", "/no/such/folder/result.json"], 2, "/no/such/folder"),
        (["accuracy", "--bundle", "/no/such/bundle"], 1, "/no/such/bundle"),
        (["latency", "--bundle", "/no/such/bundle"], 1, "/no/such/bundle"),
        (["latency", "--rounds", "3"], 2, "rounds"),
    ],
)
def test_errors_are_one_plain_line(arguments, code, words, capsys):
    came, said = run(arguments, capsys)
    assert came == code
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
