"""The commands `tokens`, `robustness` and `corruptions`: help and plain errors."""

import pytest
from PIL import Image
from pocketlens_bench.cli import app


def run(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        app(arguments)
    return left.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("tokens", ("--student", "--gallery", "--quick", "--seed", "--json", "--out", "--bundle")),
        ("robustness", ("--quick", "--seed", "--json", "--out", "--bundle")),
        ("corruptions", ("--out", "--query", "--seed")),
    ],
)
def test_help_names_every_option_and_an_example(command, options, capsys):
    code, said = run([command, "--help"], capsys)
    assert code == 0
    assert f"Example: pocketlens-bench {command}" in said.out
    for option in options:
        assert option in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tokens", "--student", "/no/such/student"], 1, "/no/such/student"),
        (["tokens", "--gallery", "10"], 2, "gallery"),
        (["robustness", "--bundle", "/no/such/bundle"], 1, "/no/such/bundle"),
        (["robustness", "--out", "/no/such/folder/result.json"], 2, "/no/such/folder"),
        (["corruptions", "--query", "999999"], 2, "pictures 0 to 1199"),
    ],
)
def test_errors_are_one_plain_line(arguments, code, words, capsys):
    came, said = run(arguments, capsys)
    assert came == code
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_the_contact_sheet_is_written(tmp_path, capsys):
    code, said = run(["corruptions", "--out", str(tmp_path / "sheet.png"), "--query", "3"], capsys)
    assert code == 0
    assert "this is 3" in said.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 6 * 96
