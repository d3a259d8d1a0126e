"""All tables in one go: what is kept, what is measured, what is refused; with parts that measure nothing."""

import json
import re

import pytest
from pocketlens_bench.cli import app, commands
from pocketlens_bench.command_line import typed_command
from pocketlens_bench.conditions import bundle_card
from pocketlens_bench.paper import PARTS, FolderTaken, Part, Run, measured
from pocketlens_bench.report.sections.registry import SECTIONS
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import BadBundle
from typer.main import get_command

CARD = bundle_card(default_bundle())


def run(**more) -> Run:
    return Run(**{"bundle": default_bundle(), "quick": True, "seed": 0, "threads": 1, **more})


class Counted:
    """A part that counts how often it measures."""

    def __init__(self, kind: str, fails: bool = False) -> None:
        self.times = 0
        self.fails = fails
        self.part = Part(
            kind, lambda run: {"rounds": 5 if run.quick else 50}, self.measure, lambda run: ["--rounds", "5"]
        )

    def measure(self, run, on_progress):
        self.times += 1
        on_progress("stage", 1, 2)
        if self.fails:
            raise BadBundle("broken")
        return {
            "benchmark": self.part.kind, "typed": typed_command(),
            "conditions": {"bundle": CARD, "sizes": {"rounds": 5, "gallery": 9}, "seeds": {"bootstrap": run.seed}},
        }  # fmt: skip


def test_each_part_is_measured_once_and_then_kept(tmp_path):
    parts = [Counted("first"), Counted("second")]
    told = []
    for _ in range(2):
        done = [
            each
            for _, each in measured(
                [one.part for one in parts], run(), tmp_path, on_progress=lambda *say: told.append(say)
            )
        ]
    assert [each.kept for each in done] == [True, True]
    assert [one.times for one in parts] == [1, 1]
    assert told == [("1 of 2, first: stage", 1, 2), ("2 of 2, second: stage", 1, 2)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first.json", "second.json"]


def test_after_a_failure_what_was_measured_stays(tmp_path):
    first, second = Counted("first"), Counted("second", fails=True)
    for _ in range(2):
        with pytest.raises(BadBundle):
            list(measured([first.part, second.part], run(), tmp_path))
    assert (first.times, second.times) == (1, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made.update(benchmark="third"), "another kind"),
        (lambda made: made["conditions"]["bundle"].update(encoder="enc-0"), "another bundle"),
        (lambda made: made["conditions"]["sizes"].update(rounds=50), "another sizes"),
        (lambda made: made["conditions"]["seeds"].update(bootstrap=1), "another seed"),
    ],
)
def test_a_file_of_something_else_is_refused_before_anything_is_measured(change, words, tmp_path):
    first, second = Counted("first"), Counted("second")
    list(measured([second.part], run(), tmp_path))
    file = tmp_path / "second.json"
    made = json.loads(file.read_text())
    change(made)
    file.write_text(json.dumps(made))
    with pytest.raises(FolderTaken, match=rf"second\.json.*{words}"):
        list(measured([first.part, second.part], run(), tmp_path))
    assert first.times == 0
    assert json.loads(file.read_text()) == made


def test_a_result_says_the_command_that_measures_it_alone(tmp_path):
    list(measured([Counted("first").part], run(seed=7), tmp_path))
    made = json.loads((tmp_path / "first.json").read_text())
    assert made["typed"] == ["first", "--rounds", "5", "--seed", "7", "--out", "first.json"]


def test_every_part_has_its_command_with_its_options_and_its_section():
    known = get_command(commands).commands  # type: ignore[attr-defined]
    for part in PARTS:
        assert part.kind in {section.kind for section in SECTIONS}
        options = {option for parameter in known[part.kind].params for option in parameter.opts}
        for quick in (True, False):
            asked = part.options(run(quick=quick))
            assert {word for word in asked if word.startswith("--")} <= options
            assert part.sizes(run(quick=quick))


def test_an_unknown_table_is_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        app(["paper", "--out", str(tmp_path), "--only", "latency,speed"])
    assert left.value.code == 2
    assert re.search("speed.*latency, ", capsys.readouterr().err)
