"""What survives under load, with real servers, kills, promotions and rotations; and that what breaks is counted."""

import io
import json
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pocketlens_bench.chaos import rotation, versions
from pocketlens_bench.chaos.asking import CLIENTS, answers, asking
from pocketlens_bench.chaos.certificates import HAS_OPENSSL
from pocketlens_bench.chaos.driver import PARTS, felt, measured
from pocketlens_bench.chaos.judging import (
    COSINE,
    DIFFERING,
    MIXED,
    SAME,
    UNKNOWN,
    Asked,
    Right,
    alike,
    broken,
    fact,
    judged,
    tally,
)
from pocketlens_bench.chaos.replicas import Replica, held_ports
from pocketlens_bench.chaos.setting import Sizes, made
from pocketlens_bench.cli import app
from pocketlens_bench.report.console_chaos import print_chaos
from pocketlens_bench.world import silently
from pocketlens_cloud.gallery.folder import FolderVersions
from pocketlens_edge import patience
from pocketlens_edge.client import Client
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import Overloaded, ServerFault, TooLate, Unauthenticated
from rich.console import Console

SIZES = Sizes(
    seconds=2.0, rate=15.0, pictures=40, questions=8, timeout_s=60.0, pause_s=0.4, down_s=0.2, indexed=40,
    index_within_s=1.5,
)  # fmt: skip
RIGHT = Right(
    {"g1": [[("a", 0.9), ("b", 0.8)]], "g2": [[("x", 0.9), ("y", 0.8)]]},
    {"g1": frozenset("abc"), "g2": frozenset("xyz")},
)


def answer(generation: str, *hits: tuple[str, float]):
    return SimpleNamespace(generation=generation, hits=[SimpleNamespace(id=name, score=score) for name, score in hits])


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return made(default_bundle(), tmp_path_factory.mktemp("chaos"), SIZES, 0, silently)


# --- nothing breaks


def test_nothing_breaks_under_kills_promotions_and_rotations(setting):
    result = measured(setting, parts=list(PARTS))
    assert len(result["left_out"]) == (not HAS_OPENSSL)
    tables = {table["key"]: table for table in result["tables"]}
    facts = {key: {each["name"]: each["value"] for each in table["facts"]} for key, table in tables.items()}
    assert facts["replicas"]["servers killed (kill -9)"] >= 1
    assert facts["indexing"]["pictures missing"] == 0
    assert facts["versions"]["promotions and rollbacks"] >= 1
    if HAS_OPENSSL:
        assert facts["rotation"]["certificates and keys replaced"] >= 1
    for table in tables.values():
        for row in table["rows"]:
            assert row["answered"] + row["turned_away"] == row["asked"] > 5, row  # a busy machine may turn away
    assert result["broken"] == []
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    page = io.StringIO()
    print_chaos(Console(file=page, width=90), result)
    assert "servers killed (kill -9)" in page.getvalue() and "…" not in page.getvalue()


# --- what breaks is counted


@pytest.mark.parametrize(
    ("came", "verdict"),
    [
        (answer("g1", ("a", 0.9), ("b", 0.8)), SAME),
        (answer("g1", ("a", 0.9), ("y", 0.8)), MIXED),
        (answer("g2", ("a", 0.9), ("b", 0.8)), MIXED),
        (answer("g1", ("a", 0.9), ("c", 0.7)), DIFFERING),
        (answer("g1", ("a", 0.9), ("b", 0.8 + 2 * COSINE)), DIFFERING),
        (answer("g1", ("a", 0.9)), DIFFERING),
        (answer("g3", ("a", 0.9), ("b", 0.8)), UNKNOWN),
    ],
)
def test_each_way_to_be_wrong_is_told_and_counted(came, verdict):
    said = judged(lambda: came, RIGHT, 0)
    assert said[0] == verdict
    row = tally("one", [Asked(0.0, 0.0, 0.1, *said)])
    assert row["answered"] == (verdict == SAME)
    assert sum(row[wrong] for wrong in (MIXED, DIFFERING, UNKNOWN)) == (verdict != SAME)
    told = broken([{"title": "T", "rows": [row], "facts": []}])
    assert any(f"an answer that is {verdict}" in each for each in told) == (verdict != SAME)


def test_pictures_of_one_score_may_change_places():
    ranking = [("a", 0.9), ("b", 0.8), ("c", 0.8 - COSINE / 4)]
    assert alike([ranking[0], ranking[2], ranking[1]], ranking)
    assert alike([("a", 0.9), ("b", 0.8), ("d", 0.8)], ranking)
    assert not alike([("d", 0.9), ("b", 0.8), ("c", 0.8)], ranking)
    assert not alike([("b", 0.9), ("a", 0.8), ("c", 0.8)], ranking)
    assert not alike([("a", 0.9), ("b", 0.8), ("b", 0.8)], ranking)


def test_errors_are_counted_by_name_and_facts_that_must_be_zero_are_named():
    def refuse():
        raise Unauthenticated("a sentence")

    def turn_away():
        raise Overloaded("come again")

    row = tally("one", [Asked(0.0, 0.0, 0.1, *judged(refuse, RIGHT, 0))] * 2)
    assert row["errors"] == {"Unauthenticated": 2}
    away = tally("two", [Asked(0.0, 0.0, 0.1, *judged(turn_away, RIGHT, 0)), Asked(0.0, 0.0, 0.1, SAME)])
    assert (away["errors"], away["turned_away"]) == ({}, 1)
    assert list(felt([{"title": "T", "rows": [away]}])) == ["T, two: 1 of 2 questions were turned away for load"]
    facts = [fact("fine", 3), fact("lost", 0, must_be_zero=True), fact("twice", 4, must_be_zero=True)]
    told = broken([{"title": "T", "rows": [row], "facts": facts}])
    assert told == [
        "T, one: 2 of 2 questions ended with Unauthenticated, as in: a sentence",
        "T, one: no question was answered",
        "T: twice: 4",
    ]


def test_late_ones_are_told_apart_by_whether_their_asker_was_punctual_meanwhile():
    """Late from 0 to 5 s and from 10 to 15 s; the asker itself awoke late at 3 s, and a little so at 12 s."""
    late = {0.0, 10.0}
    woke = {3.0: 0.2, 12.0: 0.04, 20.0: 0.2}
    outcomes = [
        Asked(due, 9.0, 5.0, *(("TooLate", "5 s allowed") if due in late else (SAME,)), woke_s=woke.get(due, 0.0))
        for due in map(float, range(25))
    ]
    row = tally("one", outcomes)
    assert (row["errors"], row["late_while_still"]) == ({"TooLate": 2}, 1)
    table = {"title": "T", "rows": [row], "facts": []}
    told = "T, one: 2 of 25 questions ended with TooLate (1 while the machine stood still), as in: 5 s allowed"
    assert broken([table]) == [told]
    unknown = tally("two", [replace(one, woke_s=None) for one in outcomes])
    assert unknown["late_while_still"] is None
    machine = {"cpu": "Cpu", "cores": 4, "system": "Linux", "load_at_start": 9.0}
    card = {"machine": machine, "versions": {"python": "3"}, "time": "now"}
    page = io.StringIO()
    result = {"tables": [{**table, "rows": [row, unknown]}], "broken": [], "lost": [], "left_out": [], "honesty": ""}
    print_chaos(Console(file=page, width=90), {**result, "conditions": card})
    assert "one: late while the machine stood still: 1 of 2 late ones" in page.getvalue()
    assert "two: late while the machine stood still: not known" in page.getvalue()


def test_deadlines_while_a_part_is_set_up_are_tried_again_and_those_while_it_waits_are_counted(setting, monkeypatch):
    """Of the asking that is no client's, every second ends in a deadline: before, while and after it is disturbed."""
    turns = {Client.ask: 0, Client.describe: 0}

    def every_second(method):
        def called(self, *given):
            turns[method] += 1
            if turns[method] % 2:
                raise TooLate("5 s allowed")
            return method(self, *given)

        return called

    for method in tuple(turns):
        monkeypatch.setattr(Client, method.__name__, every_second(method))
    monkeypatch.setattr(patience, "sleep", lambda _: None)
    (table,) = versions.measure(replace(setting, sizes=replace(SIZES, seconds=1.0)), silently)
    facts = {each["name"]: each["value"] for each in table["facts"]}
    looks = facts["looks whether the server follows that ended with TooLate"]
    assert looks >= facts["promotions and rollbacks"] >= 1
    assert facts["switches not followed within 30 s"] == 0
    assert FolderVersions(setting.shop).live() == setting.first, "left as it was found"
    assert broken([table]) == [f"{table['title']}: looks whether the server follows that ended with TooLate: {looks}"]


def test_mixed_answers_and_a_server_that_stays_away_are_counted(setting):
    """The clients of the benchmark, and one server: of some pictures it is said that they are not in the generation;
    then the server is killed and does not come back."""
    asked = {"timeout_s": 60, "seed": 0}
    with held_ports(1) as (port,), Replica(setting.bundle, setting.shop, port) as server:
        generation, hits = answers(server.address, setting.questions, timeout_s=60)
        foreign = hits[0][0][0]
        told = Right({generation: hits}, {generation: setting.contents[generation] - {foreign}})
        with asking(server.address, setting.questions, told, rate=30, seconds=1, kinds=CLIENTS[:1], **asked) as clients:
            rows = clients.rows()
        assert all(row[MIXED] > 0 and row["answered"] > 0 and not row["errors"] for row in rows)
        server.kill()
    with asking(server.address, setting.questions, told, rate=10, seconds=0.5, kinds=CLIENTS[1:], **asked) as clients:
        rows = clients.rows()
    assert all(row["errors"].keys() == {"Unavailable"} and row["answered"] == 0 for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a bound port is let go, so that the server can have it")
def test_ports_are_held_for_a_server_and_against_everybody_else():
    with held_ports(2) as held, held_ports(2) as others:
        assert len({*held, *others}) == 4
        for port in held:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", held[0])), socket.create_connection(("127.0.0.1", held[0]), 10):
            pass


def test_a_server_that_ends_at_once_is_told_with_its_code_and_its_last_words(tmp_path):
    with pytest.raises(ServerFault, match=r"ended with code 2, .* It said: .*no-gallery") as raised:
        Replica(default_bundle(), tmp_path / "no-gallery", 0).up()
    assert "did not come up" not in str(raised.value)


@pytest.mark.skipif(not HAS_OPENSSL, reason="makes certificates with openssl")
def test_a_key_revoked_too_early_and_a_certificate_that_stays_are_counted(setting, monkeypatch):
    """As if the operator revoked the key before anyone had the new one, and forgot to copy the certificate."""
    revoke, new, held = rotation.keys.revoke, rotation.keys.new, []
    put = rotation.Place.put
    monkeypatch.setattr(rotation.Place, "put", lambda self, name: put(self, name) if name == "turn-0" else None)

    def new_after_revoking(file, scopes):
        if held:
            revoke(file, held[-1].id)
        came = new(file, scopes)
        held.append(came[1])
        asked.wait_until_refused()
        return came

    asked = SimpleNamespace(wait_until_refused=lambda: None)
    askers = rotation.Askers.__enter__

    def entered(self):
        asked.wait_until_refused = self.let_each_ask
        return askers(self)

    monkeypatch.setattr(rotation.keys, "new", new_after_revoking)
    monkeypatch.setattr(rotation.Askers, "__enter__", entered)
    (table,) = rotation.measure(setting, silently)
    assert all(row["errors"].keys() == {"Unauthenticated"} for row in table["rows"])
    facts = {each["name"]: each["value"] for each in table["facts"]}
    assert facts["new connections that met an older certificate"] == facts["certificates and keys replaced"] > 0


def test_wrong_usage_is_refused_and_what_broke_leaves_with_1(monkeypatch, capsys):
    for wrong in (["--only", "weather"], ["--for", "soon"]):
        with pytest.raises(SystemExit) as left:
            app(["chaos", *wrong])
        assert left.value.code == 2
    result = {"tables": [], "broken": ["it broke"], "lost": ["it broke"], "left_out": [], "honesty": ""}
    sizes = []
    monkeypatch.setattr(
        "pocketlens_bench.chaos.driver.measure", lambda *_, **given: sizes.append(given["sizes"]) or result
    )
    with pytest.raises(SystemExit) as left:
        app(["chaos", "--json", "--timeout", "12"])
    assert (left.value.code, sizes) == (1, [Sizes(timeout_s=12.0)])
    assert json.loads(capsys.readouterr().out)["broken"] == ["it broke"]
