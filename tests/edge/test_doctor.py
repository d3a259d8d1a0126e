"""The doctor: well on a healthy bundle, and not fooled by a damaged or a dishonest one."""

from __future__ import annotations

import numpy as np
import pytest

LOCAL = ["machine", "bundle", "encoder", "golden", "latency", "memory"]


def test_all_well(run):
    ran = run("doctor", "--json")
    assert ran.code == 0
    assert ran.json["ok"] is True
    checks = ran.json["checks"]
    assert list(checks) == LOCAL
    assert checks["encoder"]["provider"] == "CPUExecutionProvider"
    assert checks["encoder"]["threads"] == 1
    assert checks["golden"]["max_difference"] <= checks["golden"]["tolerance"]
    assert set(checks["latency"]["times_ms"]) == {"open", "fit", "encode", "pack"}
    assert 20e6 < checks["memory"]["peak_bytes"] < 64e9  # with all that the tests before it have loaded
    assert set(checks["machine"]["versions"]) >= {"python", "onnxruntime", "numpy", "pillow", "grpcio"}


def test_it_fits_on_one_screen(run, server):
    ran = run("doctor", "--server", server)
    assert ran.code == 0
    assert "all well" in ran.out
    assert len(ran.out.splitlines()) <= 24


def test_the_sample_bundle_fits_on_a_terminal_of_80(run, server, monkeypatch):
    """Its server is another's, which takes the longest line there is."""
    monkeypatch.delenv("POCKETLENS_BUNDLE")
    monkeypatch.setenv("COLUMNS", "80")
    ran = run("doctor", "--server", server)
    assert "not well: server" in ran.out
    assert len(ran.out.splitlines()) <= 24
    assert max(len(line.rstrip()) for line in ran.out.splitlines()) <= 80


def test_a_flipped_byte_is_found(run, own_bundle):
    golden = own_bundle / "edge" / "golden.npz"
    data = bytearray(golden.read_bytes())
    data[-300] ^= 1
    golden.write_bytes(data)
    ran = run("doctor", "--bundle", own_bundle, "--json")
    assert ran.code == 1
    assert ran.json["ok"] is False
    assert "golden.npz: altered since export" in ran.json["checks"]["bundle"]["said"]


@pytest.mark.parametrize("change", [0.01, np.nan])
def test_golden_vectors_that_are_not_reproduced_are_found(run, tmp_path, toy, change):
    """Hashes hold, the numbers do not: another model, or a machine that computes otherwise."""
    sentence = toy.reference(toy.golden_pixels())
    sentence[4, 2, 100] += change
    toy.write_edge(tmp_path / "edge", graph=toy.graph(), sentence=sentence)
    ran = run("doctor", "--bundle", tmp_path)
    assert ran.code == 1
    assert "FAIL" in ran.out
    assert "BEYOND" in ran.out
    assert "not well: golden" in ran.out


def test_golden_vectors_of_another_shape_are_found(run, tmp_path, toy):
    toy.write_edge(tmp_path / "edge", graph=toy.graph(), sentence=np.zeros((6, 1, 192), np.float32))
    ran = run("doctor", "--bundle", tmp_path)
    assert ran.code == 1
    assert "not well: golden" in ran.out


def test_the_server_is_examined(run, server):
    ran = run("doctor", "--server", server, "--json")
    assert ran.code == 0
    its = ran.json["checks"]["server"]
    assert its["gallery_size"] == 3000
    assert its["round_trip_ms"] > 0


def test_a_server_of_another_space_is_refused_with_both_ids(run, server, service, toy):
    service.description.token_space = "ts-ffffffffffffffff"
    ran = run("doctor", "--server", server, "--json")
    assert ran.code == 1
    its = ran.json["checks"]["server"]
    assert its["kind"] == "SpaceMismatch"
    assert "ts-ffffffffffffffff" in its["said"]
    assert toy.token_space in its["said"]


def test_a_server_that_does_not_take_this_encoder_is_refused(run, server, service, toy):
    service.description.encoders[:] = ["enc-ffffffffffffffff"]
    ran = run("doctor", "--server", server, "--json")
    assert ran.code == 1
    assert toy.encoder_id in ran.json["checks"]["server"]["said"]


def test_no_server_there_leaves_the_rest_examined(run):
    ran = run("doctor", "--server", "127.0.0.1:1", "--json")
    assert ran.code == 1
    checks = ran.json["checks"]
    assert all(checks[name]["ok"] for name in LOCAL)
    assert checks["server"]["kind"] == "Unavailable"
