"""A short latency run with a real server process, upon the default bundle."""

import io
import json
import socket
from threading import Thread

import pytest
from pocketlens_bench.latency import EIGHT_WORDS, measure, ratio_of_medians, table
from pocketlens_bench.proxy import CountingProxy
from pocketlens_bench.report.console import print_latency
from pocketlens_wire.bundle import default_bundle
from rich.console import Console


@pytest.fixture(scope="module")
def result():
    return measure(default_bundle(), rounds=10, gallery=100)


def test_every_stage_has_its_times(result):
    stages = {table["title"]: table["stages"] for table in result["tables"]}
    assert list(stages["device, sample picture"]) == ["open", "decode", "fit", "encode", "pack", "all"]
    whole = stages["end to end, tuned"]
    assert list(whole)[:6] == ["open", "decode", "fit", "encode", "pack_and_read", "round_trip"]
    assert {"transport", "check", "queue", "text_tower", "heads", "search"} < set(whole)
    for times in whole.values():
        assert 0 <= times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"]
    assert whole["all"]["p50_ms"] > whole["round_trip"]["p50_ms"] > whole["text_tower"]["p50_ms"]
    assert list(stages) == [
        "device, sample picture",
        "device, 12 megapixel photo",
        "end to end, tuned",
        "end to end, zero-shot",
        "end to end, first query",
    ]
    first = stages["end to end, first query"]
    assert list(first) == ["load", *whole]
    assert first["all"]["p50_ms"] > first["load"]["p50_ms"] + first["round_trip"]["p50_ms"] > whole["all"]["p50_ms"]


def test_bytes_are_counted_with_their_envelope(result):
    assert len(EIGHT_WORDS.split()) == result["request"]["words"] == 8
    encodings = result["request"]["encodings"]
    sizes = [encodings[name]["message_bytes"] for name in ("int4", "int8", "f16", "f32")]
    assert sizes == sorted(set(sizes))
    for row in encodings.values():
        assert row["message_bytes"] < row["wire_bytes"] < row["message_bytes"] + 200
        assert row["wire_bytes"] < row["first_wire_bytes"] < row["message_bytes"] + 1000


def test_the_result_is_json_and_readable(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["start"]["first_answer_s"] > result["start"]["ready_s"] > 0
    page = io.StringIO()
    print_latency(Console(file=page, width=80), result)
    shown = page.getvalue()
    assert "…" not in shown
    assert "server: text tower" in shown
    assert f"Request in int8, 8 words: message {result['request']['encodings']['int8']['message_bytes']:,}" in shown


def test_a_ratio_and_quantiles_by_hand():
    ratio = ratio_of_medians([10.0] * 9 + [1000.0], [2.0] * 10, seed=0)
    assert (ratio.value, ratio.low, ratio.high) == (5, 5, 5)  # one slow round moves no median
    (stage,) = table("t", [{"a": float(ms)} for ms in range(101)])["stages"].values()
    assert stage == {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}


def test_the_proxy_counts_both_ways_exactly():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(100) == b"question"
                connection.sendall(b"a longer answer")

        server = Thread(target=answer)
        server.start()
        with CountingProxy(f"127.0.0.1:{listener.getsockname()[1]}") as proxy:
            host, port = proxy.address.split(":")
            with socket.create_connection((host, int(port)), timeout=5) as client:
                client.sendall(b"question")
                assert client.recv(100) == b"a longer answer"
                assert (proxy.up, proxy.down) == (8, 15)
        server.join(5)
