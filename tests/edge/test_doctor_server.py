"""What the doctor says of a server: ids, round trip, clock, limits; TLS is in test_tls.py."""

from __future__ import annotations

import time

import pytest
from pocketlens_edge.doctor_server import Round, _clock, _plain
from pocketlens_wire.v1 import retrieval_pb2 as pb


@pytest.fixture
def tells(service):
    """Sets what the server says of itself; at first what a real one says."""

    def tell(**fields: object) -> None:
        for name, value in fields.items():
            setattr(service.description, name, value)

    tell(max_tokens=16, token_width=192, max_words_bytes=4096, max_request_bytes=65536)
    return tell


def test_everything_of_a_server(run, server, tells, toy):
    tells(unix_ms=int(time.time() * 1000))
    ran = run("doctor", "--server", server, "--json")
    assert ran.code == 0
    checks = ran.json["checks"]
    assert list(checks)[-6:] == ["server", "ids", "round trip", "clock", "limits", "tls"]
    assert checks["ids"]["device"] == {"token_space": toy.token_space, "encoder": toy.encoder_id}
    assert checks["ids"]["server"] == {"token_space": toy.token_space, "encoders": [toy.encoder_id]}
    assert 0 < checks["round trip"]["p50_ms"] <= checks["round trip"]["p95_ms"] < 5000
    assert checks["limits"]["tokens"] == {"device": 4, "server": 16}
    assert 4096 + 784 < checks["limits"]["request_bytes"]["device"] < 5000
    assert checks["tls"]["tls"] is False
    told = run("doctor", "--server", server).out
    assert told.count(toy.token_space) == 3, "of the bundle, here and there"
    assert "none; the connection stays on this machine" in told


def test_several_servers_are_examined_one_at_a_time(run, server):
    ran = run("doctor", "--server", f"{server},{server}", "--json")
    assert ran.code == 1
    assert "Examine one at a time" in ran.json["checks"]["server"]["said"]


@pytest.mark.parametrize(
    ("offset_s", "took_s", "said", "warned"),
    [
        (0.0, 0.010, "give or take 6.0 ms", False),
        (1.5, 0.010, "1.5 s ahead", False),
        (-2.5, 0.010, "2.5 s behind", True),
        (90_000, 0.2, "25.0 h ahead, give or take 101.0 ms", True),
    ],
)
def test_the_clock_is_compared_half_way_through_the_quickest_round(offset_s, took_s, said, warned):
    began_s = 1_700_000_000.0

    def one(took_s: float, error_s: float = 0.0) -> Round:
        its_s = began_s + took_s / 2 + offset_s + error_s
        return Round(reply=pb.DescribeReply(unix_ms=round(its_s * 1000)), began_s=began_s, took_s=took_s)

    check = _clock([one(took_s * 5, 60.0), one(took_s), one(took_s * 3, -60.0)])
    assert said in check.said
    assert (check.ok, check.warn) == (True, warned)
    assert abs(check.facts["offset_s"] - offset_s) < 0.002


def test_a_clock_that_is_wrong_is_warned_of(run, server, tells):
    tells(unix_ms=int((time.time() - 3600) * 1000))
    ran = run("doctor", "--server", server)
    assert ran.code == 0
    assert "1.0 h behind" in ran.out
    assert "all well; look at: clock" in ran.out


def test_a_server_that_does_not_tell_its_time(run, server):
    check = run("doctor", "--server", server, "--json").json["checks"]["clock"]
    assert (check["ok"], check["warn"]) == (True, False)
    assert "does not tell its time" in check["said"]


@pytest.mark.parametrize(
    ("limits", "code", "said"),
    [
        ({"max_tokens": 3}, 1, "4 tokens of width 192; the server takes 3"),
        ({"token_width": 512}, 1, "of width 512"),
        ({"max_words_bytes": 100}, 0, "words_bytes may be 4,096 here, 100 there"),
        ({"max_request_bytes": 1000}, 0, "request_bytes may be 4,9"),
    ],
)
def test_limits_below_what_this_bundle_sends(run, server, tells, limits, code, said):
    tells(**limits)
    ran = run("doctor", "--server", server, "--json")
    assert ran.code == code
    assert said in ran.json["checks"]["limits"]["said"]
    assert ran.json["checks"]["limits"]["warn"] is (code == 0)


def test_a_server_that_tells_no_limits(run, server):
    assert run("doctor", "--server", server, "--json").json["checks"]["limits"]["said"] == "the server tells none"


def test_a_connection_that_others_can_read_is_warned_of():
    check = _plain("10.255.255.1:50551", speaks_tls=False)
    assert (check.ok, check.warn) == (True, True)
    assert "can be read" in check.said
