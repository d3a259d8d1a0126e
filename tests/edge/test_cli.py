"""The command as a person or a program meets it: answers, JSON, sheets, and every bad input in one plain line."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from pocketlens_edge.conditions import from_value
from pocketlens_edge.encoder import Encoder

# --- it works


def test_search_shows_hits_bytes_and_times(run, server, photo):
    ran = run("search", photo, "--text", "make it red", "--server", server)
    assert ran.code == 0, ran.err
    assert re.search(r"1\s+a{12}\s+one\.png\s+0\.500", ran.out)
    assert re.search(r"sent\s+\d+ bytes, about [\d,]+ with the gRPC envelope; tuned", ran.out)
    assert re.search(r"device\s+open [\d.]+, fit [\d.]+, encode [\d.]+ ms", ran.out)
    assert "text tower 3.0" in ran.out
    assert ran.err == ""


def test_search_json_schema(run, server, service, photo):
    service.notes = ["unknown word: frob"]
    ran = run("search", photo, "-t", "red", "-s", server, "--json", "--top", 1, "--mode", "zero-shot")
    answer = ran.json
    assert ran.code == 0
    assert answer["hits"] == [{"rank": 1, "id": "a" * 40, "score": 0.5, "payload": {"count": 2, "file": "one.png"}}]
    assert set(answer) == {
        "hits",
        "mode",
        "notes",
        "words_used",
        "token_space",
        "gallery_space",
        "generation",
        "reranked",
        "bytes",
        "times_ms",
        "encoder",
    }
    assert answer["encoder"]["precision"] == "fp32" and answer["encoder"]["id"].startswith("enc-")
    assert answer["mode"] == "zero-shot"
    assert answer["notes"] == ["unknown word: frob"]
    assert answer["bytes"]["message"] == service.requests[0].ByteSize()
    assert set(answer["times_ms"]) == {"device", "server_and_wire"}
    assert set(answer["times_ms"]["device"]) == {"open", "fit", "encode"}


def test_words_alone_need_no_picture_and_no_encoder(run, server, service):
    ran = run("search", "--text", "two hats", "--server", server, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["times_ms"]["device"] == {}
    assert not service.requests[0].HasField("sentence")


def test_filters_arrive_typed(run, server, service):
    filters = ["-f", "count=2", "-f", "part=true", "-f", "colour=red", "-f", 'size="2"']
    assert run("search", "-t", "hat", "-s", server, *filters).code == 0
    sent = {condition.key: from_value(condition.equals) for condition in service.requests[0].filter}
    assert sent == {"count": 2, "part": True, "colour": "red", "size": "2"}
    assert sent["part"] is True


def test_what_a_server_says_does_not_steer_the_terminal(run, server, service):
    service.files = ("[red]\x1b[2Jone.png", "two.png")
    service.notes = ["\x1b]0;owned\x07[bold]note"]
    ran = run("search", "-t", "hat", "-s", server)
    assert "\x1b" not in ran.out
    assert "\x07" not in ran.out
    assert "[red]" in ran.out
    assert "[bold]note" in ran.out


def test_sheet_and_page_with_pictures_missing_ones_and_foreign_ones(run, server, service, photo, tmp_path):
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    Image.new("RGB", (64, 64), "#ff00ff").save(gallery / "one.png")
    Image.new("RGB", (64, 64), "#00ffff").save(tmp_path / "outside.png")
    service.files = ("one.png", "../outside.png")
    sheet, page = tmp_path / "out.png", tmp_path / "out.html"
    ran = run("search", photo, "-t", "red", "-s", server, "--pictures", gallery, "--sheet", sheet, "--html", page)
    assert ran.code == 0, ran.err
    assert f"wrote {sheet}" in ran.out.replace("\n", "")
    colours = {tuple(colour) for colour in np.asarray(Image.open(sheet)).reshape(-1, 3)[::7]}
    assert (255, 0, 255) in colours
    assert (0, 255, 255) not in colours, "a file name may not lead out of --pictures"
    text = page.read_text()
    assert text.count("data:image/jpeg") == 2
    assert text.count("no picture here") == 1


def test_encode_writes_tokens_and_ids(run, bundle, photo, tmp_path, toy):
    out = tmp_path / "tokens.npz"
    ran = run("encode", photo, "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["bytes"]["int8"] < ran.json["bytes"]["f16"] < ran.json["bytes"]["f32"]
    with np.load(out) as saved:
        np.testing.assert_array_equal(saved["tokens"], Encoder.load(bundle).encode_timed(photo).tokens)
        assert saved["token_space"] == toy.token_space
        assert saved["encoder"] == toy.encoder_id
    assert "nothing was kept" in run("encode", photo).out


def test_help_teaches(run):
    ran = run("search", "--help")
    assert ran.code == 0
    assert 'pocketlens-edge search mug.jpg --text "make it red"' in ran.out
    assert "What leaves this device" in ran.out


def test_version_and_module():
    done = subprocess.run(
        [sys.executable, "-m", "pocketlens_edge", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"pocketlens-edge \d+\.\d+\.\d+\S*\n", done.stdout)


# --- bad input: one plain line on stderr, exit code 1, nothing sent


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-400])


def huge(path: Path) -> None:
    """A PNG whose header promises 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


BAD_PICTURES = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "no picture": (lambda path: path.write_text("hello, this is text"), "not a picture"),
    "truncated": (truncated, "truncated"),
    "1x1": (lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"), "too small"),
    "oversized": (huge, "the limit is 50 megapixels"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_is_one_plain_line(run, server, service, tmp_path, kind):
    make, message = BAD_PICTURES[kind]
    path = tmp_path / "picture.jpg"
    make(path)
    ran = run("search", path, "-t", "red", "-s", server)
    assert ran.code == 1
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith(f"pocketlens-edge: {path}: ")
    assert message in line
    assert service.calls == 0

    as_json = run("encode", path, "--json")
    assert as_json.code == 1
    assert as_json.err == ""
    assert as_json.json["error"]["kind"] == "BadPicture"
    assert message in as_json.json["error"]["message"]


def test_no_server_there(run, photo):
    ran = run("search", photo, "--server", "127.0.0.1:1")
    assert ran.code == 1
    assert ran.err.startswith("pocketlens-edge: 127.0.0.1:1: No Pocketlens server answers there.")
    assert len(ran.err.splitlines()) == 1


def test_the_servers_refusal_is_passed_on(run, server, service):
    service.failures.append((grpc.StatusCode.INVALID_ARGUMENT, "unknown filter key `colr`", ""))
    ran = run("search", "-t", "hat", "-s", server, "--json")
    assert ran.code == 1
    assert ran.json == {"error": {"kind": "BadQuery", "message": "unknown filter key `colr`"}}


def test_a_flipped_byte_is_refused_naming_the_file(run, server, own_bundle):
    graph = own_bundle / "edge" / "encoder.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[100] ^= 1
    graph.write_bytes(data)
    for question in (["some.jpg"], ["-t", "words need only the ids, but not of a damaged bundle"]):
        ran = run("search", *question, "-s", server, "--bundle", own_bundle)
        assert ran.code == 1
        assert "encoder.fp32.onnx: altered since export" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "give a PICTURE, or words with --text, or both"),
        (["search", "-t", " "], "give a PICTURE"),
        (["search", "-t", "hat", "-f", "colour"], "filter `colour` is not key=value"),
        (["search", "-t", "hat", "--top", "0"], "--top"),
        (["search", "-t", "hat", "--mode", "magic"], "--mode"),
        (["search", "-t", "hat", "--sheet", "out.pdf"], "must end in .png"),
        (["search", "-t", "hat", "--sheet", "no/such/folder/out.png"], "there is no folder no/such/folder"),
        (["search", "-t", "hat", "--pictures", "no-such-folder"], "--pictures"),
        (["search", "-t", "hat", "--texst", "x"], "--texst"),
        (["find"], "find"),
        ([], "command"),
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments, message):
    ran = run(*arguments)
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    assert message in line
    as_json = run(*arguments, "--json")
    assert as_json.code == 2
    assert as_json.json["error"]["kind"] == "Usage"


def test_a_file_that_cannot_be_written_is_said(run, photo, tmp_path):
    (tmp_path / "out.npz").mkdir()
    ran = run("encode", photo, "-o", tmp_path / "out.npz")
    assert ran.code == 1
    assert "out.npz: Is a directory" in ran.err
