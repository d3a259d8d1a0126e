"""The checklist of hostile inputs against real servers, and that its runner notices harm."""

import sys
from collections import Counter
from contextlib import ExitStack

import pytest
from pocketlens_bench.cli import app
from pocketlens_bench.hostile import CHECKLIST, run
from pocketlens_bench.hostile.case import ANSWERED, REFUSED, Lacking, case
from pocketlens_bench.hostile.target import Harmed, Target
from pocketlens_bench.world import silently
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import STATUS_OF


@pytest.fixture(scope="module")
def targets():
    """A server that may be written and one that asks for keys, for all cases."""
    with ExitStack() as stack:
        yield run._started(stack, default_bundle(), CHECKLIST, silently)


@pytest.fixture
def target(targets) -> Target:
    return targets["plain"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about files that it reads all the same
@pytest.mark.parametrize("each", CHECKLIST, ids=lambda each: each.id)
def test_a_hostile_input_ends_as_written_and_harms_nothing(targets, each):
    row = run._row(each, targets["keys" if each.kind == "auth" else "plain"])
    if row["left_out"]:
        assert each.kind == "http"
        pytest.skip(f"needs {row['left_out']}")
    assert row["passed"], f"ended in {row['came']}, right: {each.ends}; harm: {row['harm'] or 'none'}"


def test_the_list_covers_its_classes_and_names_only_documented_endings():
    assert len({each.id for each in CHECKLIST}) == len(CHECKLIST) >= 90
    classes = Counter(each.kind for each in CHECKLIST)
    assert set(classes) == {"pictures", "tokens", "messages", "text", "http2", "auth", "filters", "http"}
    assert min(classes.values()) >= 15
    kinds = {kind.__name__ for kind in STATUS_OF}
    for each in CHECKLIST:
        assert "ServerFault" not in " ".join(each.ends)
        assert all(end.split()[-1] in kinds for end in each.ends if end.startswith("INVALID")), each.id


def test_a_wrong_ending_fails_a_fault_of_the_case_too_and_what_is_lacking_is_left_out(target):
    def faulty(_):
        raise ZeroDivisionError("x")

    def lacking(_):
        raise Lacking("a moon")

    wrong = run._row(case("x", "wrong", "", REFUSED, lambda to: to.search()), target)
    assert (wrong["came"], wrong["passed"], wrong["harm"]) == (ANSWERED, False, "")
    fault = run._row(case("x", "fault", "", REFUSED, faulty), target)
    assert (fault["came"], fault["passed"]) == ("ZeroDivisionError: x", False)
    left = run._row(case("x", "left", "", REFUSED, lacking), target)
    assert (left["left_out"], left["passed"], left["harm"]) == ("a moon", False, "")


def test_harm_is_noticed(target, monkeypatch):
    good = case("x", "good", "", ANSWERED, lambda to: to.search())
    assert run._row(good, target)["passed"]
    with monkeypatch.context() as patch:
        patch.setattr(target, "is_alive", lambda: False)
        assert run._row(good, target)["harm"] == "the server's process is gone"
    with monkeypatch.context() as patch:
        answers = iter((b"before", b"after", b"after"))
        patch.setattr(Target, "good", lambda _: next(answers))
        assert "answered otherwise" in run._row(good, target)["harm"]
    with monkeypatch.context() as patch:
        patch.setattr("pocketlens_bench.hostile.target._SERVING", 99)
        patch.setattr("pocketlens_bench.hostile.target.HEALTHY_S", 1.0)
        assert "not SERVING" in run._row(good, target)["harm"]
    with monkeypatch.context() as patch:
        patch.setattr(target, "question", lambda **_: run_of_nothing(target))
        with pytest.raises(Harmed, match="not answered: INVALID_ARGUMENT BadQuery"):
            target.good()


def run_of_nothing(target):
    return Target.question(target, sentence=None, encoder=None, words=None)


def test_against_a_server_that_runs_its_keys_and_gallery_are_left_alone(target, capsys):
    names = ["tokens-nan", "pictures-empty-jpg", "auth-none", "http-json", "filters-wrong-type"]
    found = run.tried(default_bundle(), against=target.address, only=names)
    assert (found["passed"], found["failed"], found["not_tried"]) == (2, [], [])
    assert {row["id"] for row in found["rows"] if row["left_out"]} == set(names[1:4])
    with pytest.raises(SystemExit) as left:
        app(["hostile", "--against", target.address, "--case", "tokens-nan"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert "tokens-nan" in said and "1 passed, 0 failed" in said


def test_the_command_lists_the_cases_and_knows_their_names(capsys):
    with pytest.raises(SystemExit) as left:
        app(["hostile", "--list"])
    assert left.value.code == 0 and "http2-rapid-reset" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        app(["hostile", "--case", "no-such"])
    assert left.value.code == 2 and "--list names the cases" in capsys.readouterr().err


def test_ids_are_printed_whole_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        app(["hostile", "--list"])
    assert {each.id for each in CHECKLIST} <= set(capsys.readouterr().out.split())


def test_a_library_that_is_not_installed_is_named_with_its_extra(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pocketlens_bench.hostile")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hpack", None)
    with pytest.raises(SystemExit) as left:
        app(["hostile", "--list"])
    assert left.value.code == 1
    assert capsys.readouterr().err.strip().endswith("hpack is not installed here: pip install 'pocketlens[bench]'")


def test_a_failure_is_exit_code_one(target, capsys, monkeypatch):
    wrong = case("x", "wrong", "asks well", REFUSED, lambda to: to.search())
    monkeypatch.setattr(run, "CHECKLIST", [wrong])
    monkeypatch.setattr("pocketlens_bench.hostile.CHECKLIST", [wrong])
    with pytest.raises(SystemExit) as left:
        app(["hostile", "--against", target.address])
    assert left.value.code == 1
    assert "x-wrong: ended in OK; right: INVALID_ARGUMENT BadQuery" in " ".join(capsys.readouterr().out.split())
