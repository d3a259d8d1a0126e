"""The simulated network lets every byte through, late by what it says; uploads answer as the parts they are made of."""

import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from pocketlens_bench.lab import Lab
from pocketlens_bench.latency import shelve
from pocketlens_bench.network import PROFILES, losses, ratio_of_p95
from pocketlens_bench.server import serving_uploads
from pocketlens_bench.shaper import SEGMENT, Lane, Profile, Shaper
from pocketlens_bench.uploads import UploadClient, as_taken, as_the_tower_sees, made_smaller, message
from pocketlens_bench.world import jpeg
from pocketlens_samples.queries import composed_set
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.pictures import PictureSpec, open_picture

PLAIN = Profile(name="plain", up_mbit=8, down_mbit=8, delay_ms=50, jitter_ms=0, loss=0, source="test")


def lane(profile=PLAIN, opened=0.0, seed=0):
    return Lane(profile, profile.up_mbit, opened, seed)


def test_a_small_message_takes_the_handshake_and_the_delay():
    ((arrival, size),) = lane().arrivals(100, now=0.0)
    assert size == 100
    assert arrival == pytest.approx(0.1 + 100 / 1e6 + 0.05)  # a round trip to open, the bytes, one way


def test_many_bytes_come_at_the_bandwidth_once_the_window_has_opened():
    arrivals = lane().arrivals(4_000_000, now=0.0)
    assert sum(size for _, size in arrivals) == 4_000_000
    late = arrivals[len(arrivals) // 2 :]
    took = late[-1][0] - late[0][0]
    assert (len(late) - 1) * SEGMENT / took == pytest.approx(1e6, rel=0.01)


def test_the_first_round_trip_carries_ten_segments():
    times = [arrival for arrival, _ in lane(replace(PLAIN, up_mbit=1000)).arrivals(31 * SEGMENT, now=0.0)]
    steps = [place for place in range(1, 31) if times[place] - times[place - 1] > 0.09]
    assert steps == [10, 30]  # then twenty, then forty


def test_nothing_overtakes_and_loss_makes_late_what_it_does_not_lose():
    lossy = replace(PLAIN, loss=0.05, jitter_ms=5)
    clean, lost = lane().arrivals(500 * SEGMENT, 0.0), lane(lossy, seed=3).arrivals(500 * SEGMENT, 0.0)
    times = [arrival for arrival, _ in lost]
    assert times == sorted(times)
    assert sum(size for _, size in lost) == sum(size for _, size in clean)
    assert times[-1] > clean[-1][0]


def test_an_idle_connection_begins_with_a_small_window_again():
    fast = replace(PLAIN, up_mbit=1000)
    one = lane(fast)
    one.arrivals(100 * SEGMENT, now=0.0)
    again = [arrival for arrival, _ in one.arrivals(11 * SEGMENT, now=60.0)]
    assert again[10] - again[9] > 0.09


@pytest.fixture
def echo():
    """A server that sends back what it got, once the other side has ended."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection:
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            connection.sendall(b"".join(parts)[::-1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    thread.join(timeout=5)
    listener.close()


def test_content_passes_unaltered_and_takes_at_least_what_physics_asks(echo):
    content = np.random.default_rng(0).bytes(200_000)
    profile = replace(PLAIN, up_mbit=16, down_mbit=16, delay_ms=20)
    with Shaper(echo, profile) as network:
        host, _, port = network.address.partition(":")
        began = time.monotonic()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            came = b""
            while part := connection.recv(65536):
                came += part
        took = time.monotonic() - began
        assert (network.up, network.down) == (len(content), len(content))
    assert came == content[::-1]
    assert took >= 0.04 + 2 * (len(content) / 2e6 + 0.02)  # opening, both ways' bytes and delays
    assert took < 5


def test_profiles_are_ordered_from_fast_to_slow():
    assert [each.name for each in PROFILES] == ["LAN", "home Wi-Fi", "4G", "3G", "2G"]
    assert [each.up_mbit for each in PROFILES] == sorted((each.up_mbit for each in PROFILES), reverse=True)


def test_an_upload_that_is_as_fast_is_a_loss():
    def row(low, high, way="JPEG, 512 px"):
        ratio = {"value": (low + high) / 2, "low": low, "high": high}
        return {"profile": "LAN", "way": way, "p95_ms": 40.0, "p95_over_tokens": ratio}

    said = list(losses([row(0.5, 0.9), row(0.9, 1.1), row(1.1, 2.0), row(0.5, 0.9, "tokens int4")]))
    assert len(said) == 2
    assert "is faster than tokens" in said[0] and "cannot be told from tokens" in said[1]


def test_ratio_of_equal_times_is_one():
    assert ratio_of_p95([5.0] * 20, [5.0] * 20, seed=0) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_an_upload_finds_what_the_symmetric_way_finds(tmp_path):
    found = composed_set(queries=3, gallery=40)
    bundle, shelf = default_bundle(), tmp_path / "gallery"
    shelve(bundle, found, tmp_path / "pictures", shelf, lambda *_: None)
    lab = Lab.open(bundle, threads=1)
    files = [jpeg(query.anchor) for query in found.queries]
    symmetric = lab.symmetric_tokens(files)
    gallery = np.concatenate([lab.image([file.read_bytes()]) for file in sorted((tmp_path / "pictures").glob("*.jpg"))])
    with serving_uploads(bundle, shelf, threads=1) as server, UploadClient(server.address) as client:
        for file, tokens, query in zip(files, symmetric, found.queries, strict=True):
            answer = client.search(as_taken(file), query.text, timeout_s=30)
            vector = lab.composer.compose(tokens, query.text, "zero-shot").vector
            best = np.sort(gallery @ vector)[::-1][:10]
            assert [score for _, score in answer["hits"]] == pytest.approx(best.tolist(), abs=1e-4)
            assert answer["times_ms"]["image_tower"] > 0


def test_what_is_sent_is_as_small_as_said():
    picture = jpeg(composed_set(queries=1, gallery=10).queries[0].anchor)
    spec = PictureSpec(side=64, fit="crop")
    assert open_picture(as_the_tower_sees(spec, 90)(picture)).size == (64, 64)
    assert max(open_picture(made_smaller(50, 85)(picture)).size) == 50
    assert as_taken(picture) is picture
    assert message(b"jpeg", "é")[:6] == b"\0\0\0\2\xc3\xa9"
