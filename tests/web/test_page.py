"""The page in a real Chromium: pictures in, answers out, and a sentence whenever something is wrong."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
from PIL import Image
from pocketlens_cloud.serving import keys
from pocketlens_cloud.serving.door import Door
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.questions import Mode, question
from pocketlens_wire import manifest
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.manifest import read_edge, resolve_half
from pocketlens_wire.pictures import open_picture
from pocketlens_wire.tokens import Encoding
from pocketlens_wire.v1 import retrieval_pb2 as pb

sys.path.append(str(Path(__file__).parents[1]))
from golden_pictures import golden_pictures

READY = '#state[data-state="ready"]'
ASKED = "#receipt:not([hidden])"


@pytest.fixture
def opened(browser, page):
    """The page, freshly loaded and ready."""
    browser.offline(False)
    browser.size(1200, 900)
    browser.goto(page)
    browser.wait(READY)
    return browser


@pytest.fixture(scope="module")
def photo(house) -> Path:
    return sorted(house.pictures.glob("*.jpg"))[3]


def files(browser) -> list[str]:
    return browser.evaluate("return [...document.querySelectorAll('#hits li')].map((hit) => hit.dataset.file)")


def seconds_of(browser, condition: str) -> None:
    """Wait until a JavaScript condition holds."""
    browser.evaluate(
        f"const end = Date.now() + 15000; while (!({condition})) {{"
        "if (Date.now() > end) throw new Error('waited in vain'); await new Promise((go) => setTimeout(go, 20)); }"
    )


def no_stack(sentence: str) -> None:
    """One line for a person: no trace of where in the code it came from."""
    assert "\n" not in sentence.strip()
    assert not re.search(r"Error:|Traceback|undefined|\.js\b|https?://", sentence)


# --- it works


def test_the_encoder_proves_itself_and_nothing_comes_from_elsewhere(opened, page, photo):
    form = "int8" if "int8" in read_edge(default_bundle()).graphs else "fp32"
    assert f"{form} on wasm" in opened.text("#state")
    assert "8 pictures" in opened.text("#proof") and "is allowed" in opened.text("#proof")
    assert opened.evaluate("return crossOriginIsolated")
    opened.files("#file", [str(photo)])
    opened.fill("#words", "make it red")
    opened.wait("#seen:not([hidden])")
    opened.click("#go")
    opened.wait(ASKED)
    seconds_of(opened, "[...document.querySelectorAll('#hits img')].every((each) => each.naturalWidth)")
    seen = opened.seen()
    places = {urlsplit(url).netloc for url in seen["requests"] if not url.startswith("blob:")}
    assert places == {urlsplit(page).netloc}
    assert [error for error in seen["errors"] if "No available adapters" not in error] == []


def test_the_question_is_the_very_one_the_python_edge_asks(opened, house, photo):
    """The same tokens, words, filter and ids, byte for byte, and so the same answer."""
    ours = Encoder.load(default_bundle())
    opened.files("#file", [str(photo)])
    opened.fill("#words", "make it größer")
    opened.click("summary")
    opened.select("#mode", str(int(pb.MODE_ZERO_SHOT)))
    opened.fill("#top", "7")
    opened.fill("#filter", "count=2, part=true, background='white'")
    opened.wait("#seen:not([hidden])")
    house.asked.clear()
    opened.press("#words", "Enter")
    opened.wait(ASKED)
    (came,) = house.asked
    encoder, tokens = opened.evaluate("""
        const {Edge} = await import('/edge.js'); const edge = await Edge.open();
        const file = new Uint8Array(await document.querySelector('#file').files[0].arrayBuffer());
        return [edge.running.encoder, [...(await edge.encode(file)).tokens]]""")
    wanted = question(
        token_space=ours.manifest.token_space, encoder_id=encoder, encoding=Encoding.INT8,
        tokens=np.array(tokens, np.float32).reshape(ours.manifest.token_count, -1), words="make it größer",
        top=7, mode=Mode.ZERO_SHOT, where={"count": 2, "part": True, "background": "white"},
    )  # fmt: skip
    assert came.SerializeToString() == wanted.SerializeToString()
    assert f"{wanted.ByteSize():,} bytes" in opened.text("#stages")
    reply = house.service.answer(house.service.check(wanted))
    assert files(opened) == [hit.payload["file"].text for hit in reply.hits]
    assert opened.text("#asked") == f"{len(reply.hits)} hits, zero-shot mode"


def test_words_alone_and_a_picture_alone(opened, photo):
    opened.fill("#words", "a red mug")
    opened.click("#go")
    opened.wait(ASKED)
    assert len(files(opened)) == 12
    assert "decode" not in opened.text("#stages")
    opened.goto(opened.evaluate("return location.href"))
    opened.wait(READY)
    opened.files("#file", [str(photo)])
    opened.wait("#seen:not([hidden])")
    opened.click("#go")
    opened.wait(ASKED)
    assert files(opened)[0] == photo.name  # it is in the gallery itself
    assert {"decode", "fit", "encode", "network", "text tower", "search"} <= set(opened.text("#stages").split("\n"))


def test_a_sketch_a_camera_a_paste_a_drop_and_a_hit_are_pictures(opened):
    bring = """
        const pixels = Uint8Array.from(atob(given), (each) => each.charCodeAt(0));
        const it = new DataTransfer(); it.items.add(new File([pixels], 'brought.png', {type: 'image/png'}));
    """
    paste = bring + "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: it}))"
    drop = bring + "document.dispatchEvent(new DragEvent('drop', {dataTransfer: it}))"
    png = base64.b64encode(_png()).decode()
    ways = {
        "sketch": [
            ("click", "#open-sketch"), ("draw", "#pad", [[0.2, 0.2], [0.3, 0.8], [0.8, 0.3]]), ("click", "#use-sketch"),
        ],
        "camera": [("click", "#open-camera"), ("wait", "#take:enabled"), ("click", "#take")],
        "paste": [("evaluate", paste, png)],
        "drop": [("evaluate", drop, png)],
        "hit": [
            ("fill", "#words", "a red mug"), ("click", "#go"), ("wait", "#hits li"),
            ("evaluate", "document.querySelector('.again').click()"),
        ],
    }  # fmt: skip
    squares = set()
    for way, steps in ways.items():
        for what, *given in steps:
            getattr(opened, what)(*given)
        opened.wait("#seen:not([hidden])")
        squares.add(opened.evaluate("return document.querySelector('#square').toDataURL()"))
        assert not opened.count("#problem:not([hidden])"), way
        opened.click("#remove")
    assert len(squares) == len(ways) - 1  # the pasted and the dropped one are the same


def test_it_fits_a_phone_and_works_without_a_mouse(opened):
    opened.size(360, 740)
    opened.evaluate("document.querySelector('#words').focus()")
    opened.fill("#words", "a red mug")
    opened.press("#words", "Enter")
    opened.wait(ASKED)
    assert opened.evaluate("return document.documentElement.scrollWidth") <= 360
    assert opened.evaluate("const {top} = document.querySelector('#hits').getBoundingClientRect(); return top") < 740
    nameless = """return [...document.querySelectorAll('button, input:not([hidden]), select, img, canvas, a')]
        .filter((each) => !(each.innerText || each.ariaLabel || each.alt !== undefined || each.labels?.length
            || each.ariaHidden === 'true')).map((each) => each.outerHTML)"""
    assert opened.evaluate(nameless) == []


# --- the encoder it takes


def _bundle(at: Path, tolerance: float) -> Path:
    """The default bundle with a form `int8` beside fp32: the same graph, held to `tolerance`."""
    at.mkdir()
    half = at / "edge"
    shutil.copytree(resolve_half(default_bundle(), "edge"), half)
    ours = read_edge(half)
    whole = ours.graphs["fp32"]
    graph = onnx.load(half / whole.file)
    graph.producer_name = "int8"  # no two forms are one file
    onnx.save(graph, half / "encoder.int8.onnx")
    small = manifest.describe_encoder(
        half / "encoder.int8.onnx", encoder=ours.graphs["int8"].encoder, tolerance=tolerance
    )
    manifest.write(replace(ours, graphs={"fp32": whole, "int8": small}), half)
    return at


def test_int8_is_taken_where_it_proves_itself(serve, house, built, browser, tmp_path):
    with serve(house, built, _bundle(tmp_path / "bundle", 0.01)) as address:
        browser.goto(address)
        browser.wait(READY)
        assert "int8 on wasm" in browser.text("#state")
        browser.click("summary")
        browser.select("#encoder", "fp32|wasm")
        seconds_of(browser, "document.querySelector('#state').textContent.includes('fp32 on wasm')")


def test_a_form_that_fails_its_golden_check_is_not_taken_and_the_page_says_so(serve, house, built, browser, tmp_path):
    with serve(house, built, _bundle(tmp_path / "bundle", 1e-12)) as address:
        browser.goto(address)
        browser.wait(READY)
        assert "fp32 on wasm" in browser.text("#state")
        assert "int8 on wasm fails its golden check here" in browser.text("#notes")


def test_a_gpu_that_is_not_there_is_not_taken_and_the_page_says_so(opened):
    running = opened.evaluate("""
        const {Edge} = await import('/edge.js'); const edge = await Edge.open();
        return edge.use({form: 'fp32', backend: 'webgpu'})""")
    assert running["backend"] == "wasm" and running["proof"]["ok"]
    assert "fp32 on webgpu does not run here" in running["notes"][0]


def test_golden_vectors_that_are_not_met_leave_no_encoder(serve, house, built, browser, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(resolve_half(default_bundle(), "edge"), bundle / "edge")
    ours = read_edge(bundle)
    with np.load(bundle / "edge" / "golden.npz") as golden:
        pixels, sentence = golden["pixels"], golden["sentence"]
    np.savez(bundle / "edge" / "golden.npz", pixels=pixels[:, :, :, ::-1], sentence=sentence)  # blue for red
    manifest.write(replace(ours, golden=manifest.describe_file(bundle / "edge" / "golden.npz")), bundle / "edge")
    with serve(house, built, bundle) as address:
        browser.goto(address)
        browser.wait('#state[data-state="failed"]')
        sentence = browser.text("#problem")
        assert "fp32 on wasm fails its golden check here" in sentence
        no_stack(sentence)
        assert browser.count("#go:disabled") == 1


def test_a_graph_that_is_not_the_manifests_is_refused(serve, house, built, browser, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(resolve_half(default_bundle(), "edge"), bundle / "edge")
    with serve(house, built, bundle) as address:
        for graph in (bundle / "edge").glob("*.onnx"):
            graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
        browser.goto(address)
        browser.wait('#state[data-state="failed"]')
        assert "encoder.fp32.onnx is not the file its manifest means" in browser.text("#problem")
        no_stack(browser.text("#problem"))


# --- what goes wrong is a sentence


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (50, 70, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("empty.jpg", b"", "the file is empty"),
        ("notes.jpg", b"these are no pixels" * 9, "not a picture of a known kind"),
        ("cut.png", _png()[:2000], "truncated or broken"),
        ("flipped.png", _png()[:3000] + b"\0" + _png()[3001:], "truncated or broken"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known kind"),
        ("scan.tif", b"II*\0" + bytes(40), "browsers cannot read TIFF"),
        ("bomb.png", _png()[:16] + b"\0\0\xff\xff\0\0\xff\xff" + _png()[24:], "the limit is 50 megapixels"),
        ("dot.png", _png()[:16] + b"\0\0\0\1\0\0\0\1" + _png()[24:], "too small to show anything"),
        ("head.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0", "truncated or broken"),
        ("<img src=x>.gif", b"GIF89a\x20\0\x20\0\0\0\0", "cannot decode the picture"),
    ],
)
def test_a_bad_picture_is_named_and_refused(opened, tmp_path, name, data, said):
    file = tmp_path / name
    file.write_bytes(data)
    opened.files("#file", [str(file)])
    opened.wait("#problem:not([hidden])")
    sentence = opened.text("#problem")
    assert said in sentence and name in sentence
    no_stack(sentence)
    opened.fill("#words", "a red mug")  # and the page goes on
    opened.click("#go")
    opened.wait(ASKED)


def test_a_question_that_cannot_be_asked_gets_a_sentence(opened):
    for words, wanted, said in (
        ("", "", "Nothing to search for"),
        ("a mug", "price=9", "filter key `price` is unknown"),
        ("a mug", "count=many", "filter key `count` holds integer"),
        ("a mug", "colour", "is not key=value"),
        ("a mug", "count=99999999999999999999", "64 bits"),
        ("ä" * 4000, "", "4096 bytes of UTF-8"),
    ):
        opened.evaluate("document.querySelector('details').open = true")
        opened.fill("#words", words)
        opened.fill("#filter", wanted)
        opened.click("#go")
        seconds_of(opened, f"document.querySelector('#problem').textContent.includes({json.dumps(said)})")
        no_stack(opened.text("#problem"))


def test_a_server_that_is_gone_gets_a_sentence(serve, house, built, browser):
    with serve(house, built, default_bundle()) as address:
        browser.goto(address)
        browser.wait(READY)
    browser.fill("#words", "a red mug")
    browser.click("#go")
    browser.wait("#problem:not([hidden])")
    assert browser.text("#problem") == "The server does not answer. Is it still running?"


# --- behind keys


def _unlocked(browser, key: str) -> None:
    browser.wait("#unlock:not([hidden])")
    browser.fill("#key", key)
    browser.press("#key", "Enter")


def test_a_key_is_asked_for_where_the_server_wants_one_and_goes_nowhere_else(
    serve, house, built, browser, tmp_path, caplog
):
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "keys.json"
    (good, kept), (other, _), (indexing, _) = (keys.new(file, [scope]) for scope in ("search", "search", "index"))
    with serve(house, built, default_bundle(), Door(keys=keys.Keys(file))) as address:
        browser.goto(address)
        browser.wait("#unlock:not([hidden])")
        assert "this server wants a key" in browser.text("#problem")
        _unlocked(browser, "plk_ with spaces")
        seconds_of(browser, "document.querySelector('#problem').textContent.includes('This is no key')")
        _unlocked(browser, good[:-1] + ("A" if good[-1] != "A" else "B"))
        seconds_of(browser, "document.querySelector('#problem').textContent.includes('does not know the key')")
        _unlocked(browser, indexing)
        browser.wait(READY)  # it may ask what the server speaks, but not search
        browser.fill("#words", "a red mug")
        browser.click("#go")
        seconds_of(browser, "document.querySelector('#problem').textContent.includes('needs scope search')")

        _unlocked(browser, good)
        browser.wait(ASKED)
        pictures = "[...document.querySelectorAll('#hits img')].map((each) => each.naturalWidth)"
        seconds_of(browser, f"{pictures}.length === 12 && {pictures}.every(Boolean)")
        browser.evaluate("document.querySelector('.again').click()")
        browser.wait("#seen:not([hidden])")
        browser.goto(address)  # the tab keeps the key
        browser.wait(READY)
        assert browser.count("#unlock:not([hidden])") == 0
        assert browser.evaluate("return [Object.values(sessionStorage), Object.values(localStorage)]") == [[good], []]

        keys.revoke(file, kept.id)
        browser.fill("#words", "a red mug")
        browser.click("#go")
        seconds_of(browser, "document.querySelector('#problem').textContent.includes('was revoked on')")
        no_stack(browser.text("#problem"))
        _unlocked(browser, other)
        browser.wait(ASKED)
        assert browser.evaluate("return document.querySelector('#key').value + document.cookie") == ""
    seen = browser.seen()
    for secret in (text.rpartition("_")[2] for text in (good, other, indexing)):
        assert not [url for url in seen["requests"] if secret in url]
        assert secret not in caplog.text + "".join(seen["errors"])


# --- the same picture, the same answer


def test_the_same_tokens_and_hits_as_the_python_edge_over_every_kind_of_picture(opened, house, tmp_path, capsys):
    """What a browser cannot read it must refuse; all else must agree with Python at fp32."""
    encoder = Encoder.load(default_bundle())
    opened.evaluate("""
        const {Edge} = await import('/edge.js'); window.edge = await Edge.open();
        await edge.use({form: 'fp32', backend: 'wasm'})""")
    cosines, overlaps, refused = {}, [], []
    for path in golden_pictures(tmp_path):
        file = base64.b64encode(path.read_bytes()).decode()
        came = opened.evaluate(
            """const file = Uint8Array.from(atob(given), (each) => each.charCodeAt(0));
            return edge.encode(file, 'it').then(({tokens}) => [...tokens], (error) => error.message)""",
            file,
        )
        if isinstance(came, str):
            assert "browsers cannot read" in came and path.suffix in (".tiff", ".ppm", ".pgm", ".pbm"), (
                f"{path}: {came}"
            )
            refused.append(path.name)
            continue
        theirs = np.array(came, np.float32).reshape(encoder.manifest.token_count, -1)
        ours = encoder.encode(open_picture(path, near=encoder.manifest.picture.side))
        lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
        cosines[path.name] = float(((theirs * ours).sum(1) / lengths).min())
        both = [_top(house, encoder, tokens) for tokens in (ours, theirs)]
        overlaps.append(len(both[0] & both[1]) / 10)
    worst = min(cosines, key=cosines.__getitem__)
    with capsys.disabled():
        print(  # noqa: T201
            f" [{len(cosines)} pictures, {len(refused)} refused by kind; token cosine at least {cosines[worst]:.5f} "
            f"({worst}), top-10 overlap {np.mean(overlaps):.4f}] ",
            end="",
        )
    assert len(cosines) >= 200
    assert cosines[worst] >= 0.999, worst
    assert np.mean(overlaps) >= 0.99


def _top(house, encoder: Encoder, tokens: np.ndarray) -> set[str]:
    asked = question(
        token_space=encoder.manifest.token_space, encoder_id=encoder.encoder_id, tokens=tokens, words="",
        encoding=Encoding.INT8, top=10, mode=None, where={},
    )  # fmt: skip
    return {hit.id for hit in house.service.answer(house.service.check(asked)).hits}
