"""A toy bundle with the true signatures, a folder of pictures, an indexed gallery, a server on port 0."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import tempfile
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Gallery
from pocketlens_cloud.indexing import ingest
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import front, server
from pocketlens_wire import manifest
from pocketlens_wire.pictures import PictureSpec, fit, open_picture
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub
from qdrant.servers import SERVERS, Running
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

SIDE, WIDTH, DIM, CONTEXT = 16, 12, 24, 24
TOKEN_SPACE, GALLERY_SPACE, ENCODER = "ts-" + "0" * 16, "gs-" + "0" * 16, "enc-" + "0" * 16
PROMPTS = manifest.Prompts(composed="a photo of {sentence}, {words}", picture="a photo of {sentence}", words="{words}")
LAYOUT = manifest.TextLayout(
    begin=[1], end=[2], pad=0, slot=4, special=[0, 1, 2, 4], unknown=3, fixed_length=False, clean=["plain", "spaces"]
)
WORDS = [
    "a",
    "photo",
    "of",
    ",",
    ".",
    "$",
    "<",
    ">",
    "20",
    "in",
    "red",
    "green",
    "blue",
    "dotted",
    "shoe",
    "hat",
    "on",
    "grass",
    "make",
    "it",
    "smaller",
    "slot",
    "bos",
    "eos",
]
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<slot>")


def _model(inputs: dict[str, tuple], outputs: dict[str, tuple], nodes: list, constants: dict) -> onnx.ModelProto:
    kinds = {"pixels": TensorProto.UINT8, "token_ids": TensorProto.INT64, "end": TensorProto.INT64}
    kinds |= {"sentence_start": TensorProto.INT64, "sentence_length": TensorProto.INT64}

    def values(shapes: dict[str, tuple]) -> list:
        return [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), list(shape))
            for name, shape in shapes.items()
        ]

    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", values(inputs), values(outputs), initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _nodes(*lines: tuple[str, str, str] | tuple[str, str, str, dict]) -> list:
    """("Op", "inputs by space", "output", attributes) -> nodes."""
    return [helper.make_node(op, names.split(), [out], **(rest[0] if rest else {})) for op, names, out, *rest in lines]


@dataclass(frozen=True)
class Toy:
    """A cloud half on disk and the numpy oracle of its graphs."""

    bundle: Path  # its root
    embedding: np.ndarray  # (vocabulary, WIDTH)
    project: np.ndarray  # (WIDTH, DIM)
    see: np.ndarray  # (SIDE * SIDE * 3, DIM)
    fuse: np.ndarray  # (DIM, DIM)
    mix: np.ndarray  # (3,) weights of composed, picture, words
    token_space: str = TOKEN_SPACE
    gallery_space: str = GALLERY_SPACE
    encoder: str = ENCODER
    width: int = WIDTH
    dim: int = DIM
    side: int = SIDE
    context: int = CONTEXT

    def id(self, word: str) -> int:
        return (*SPECIAL, *WORDS).index(word)

    def text(self, pieces: list[str | np.ndarray]) -> np.ndarray:
        """The text tower's answer to <bos> pieces <eos>; an array piece is a sentence (k, WIDTH)."""
        whole = ["<bos>", *pieces, "<eos>"]
        table = np.concatenate([p if isinstance(p, np.ndarray) else self.embedding[[self.id(p)]] for p in whole])
        weights = 1 + 0.1 * np.arange(len(table))
        return _unit(((table * weights[:, None]).sum(0) @ self.project)[None])[0]

    def query(self, composed: np.ndarray, picture: np.ndarray, words: np.ndarray) -> np.ndarray:
        return _unit((self.mix[0] * composed + self.mix[1] * picture + self.mix[2] * words)[None])[0]

    def vectors(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Gallery vectors of pixels (n, side, side, 3)."""
        raw = (pixels.astype(np.float32) / 255 - 0.5).reshape(len(pixels), -1) @ self.see
        return {"raw": raw, "original": _unit(raw), "union": _unit(raw @ self.fuse)}

    def pixels(self, files: list[Path]) -> np.ndarray:
        """What the towers see of picture files."""
        spec = PictureSpec(side=self.side, fit="crop")
        return np.stack([fit(open_picture(file, near=self.side), spec) for file in files])

    def sentence(self, seed: int, k: int = 4) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((k, self.width)).astype(np.float32)

    def request(self, **changes: Any) -> pb.SearchRequest:
        """A good request: a picture and words; None removes a field."""
        fields = {
            "token_space": self.token_space,
            "encoder": self.encoder,
            "sentence": pack(self.sentence(0), Encoding.F32),
            "words": "in red",
            "top": 5,
        } | changes
        return pb.SearchRequest(**{name: value for name, value in fields.items() if value is not None})


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _text_tower(toy: Toy) -> onnx.ModelProto:
    nodes = _nodes(
        ("Gather", "embedding token_ids", "typed"),
        ("Shape", "token_ids", "length", {"start": 1, "end": 2}),
        ("Squeeze", "length", "length0"),
        ("Range", "zero length0 one", "position"),
        ("Unsqueeze", "sentence_start axis1", "start"),
        ("Unsqueeze", "sentence_length axis1", "count"),
        ("Unsqueeze", "end axis1", "last"),
        ("Sub", "position start", "offset"),
        ("GreaterOrEqual", "offset zero", "after"),
        ("Less", "offset count", "before"),
        ("And", "after before", "inside"),
        ("Shape", "sentence", "k", {"start": 1, "end": 2}),
        ("Sub", "k one", "k1"),
        ("Squeeze", "k1", "highest"),
        ("Clip", "offset zero highest", "index"),
        ("Unsqueeze", "index axis2", "indices"),
        ("GatherND", "sentence indices", "placed", {"batch_dims": 1}),
        ("Unsqueeze", "inside axis2", "inside3"),
        ("Where", "inside3 placed typed", "row"),
        ("LessOrEqual", "position last", "live"),
        ("Cast", "live", "livef", {"to": TensorProto.FLOAT}),
        ("Cast", "position", "positionf", {"to": TensorProto.FLOAT}),
        ("Mul", "positionf tenth", "slope"),
        ("Add", "slope onef", "weight"),
        ("Mul", "livef weight", "masked"),
        ("Unsqueeze", "masked axis2", "masked3"),
        ("Mul", "row masked3", "weighted"),
        ("ReduceSum", "weighted axis1", "summed", {"keepdims": 0}),
        ("MatMul", "summed project", "raw"),
        ("LpNormalization", "raw", "text", {"axis": 1, "p": 2}),
    )
    constants = {
        "embedding": toy.embedding,
        "project": toy.project,
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis1": np.array([1]),
        "axis2": np.array([2]),
        "tenth": np.float32(0.1),
        "onef": np.float32(1),
    }
    inputs = {"token_ids": ("b", "l"), "sentence": ("b", "k", WIDTH)}
    inputs |= dict.fromkeys(("sentence_start", "sentence_length", "end"), ("b",))
    return _model(inputs, {"text": ("b", DIM)}, nodes, constants)


def _image_tower(toy: Toy) -> onnx.ModelProto:
    nodes = _nodes(
        ("Cast", "pixels", "float", {"to": TensorProto.FLOAT}),
        ("Div", "float scale", "unit"),
        ("Sub", "unit half", "centred"),
        ("Flatten", "centred", "flat"),
        ("MatMul", "flat see", "image_raw"),
        ("LpNormalization", "image_raw", "image", {"axis": 1, "p": 2}),
    )
    constants = {"scale": np.float32(255), "half": np.float32(0.5), "see": toy.see}
    outputs = {"image_raw": ("b", DIM), "image": ("b", DIM)}
    return _model({"pixels": ("b", SIDE, SIDE, 3)}, outputs, nodes, constants)


def _query_head(toy: Toy) -> onnx.ModelProto:
    nodes = _nodes(
        ("Mul", "composed m0", "c"),
        ("Mul", "picture m1", "p"),
        ("Mul", "words m2", "w"),
        ("Sum", "c p w", "sum"),
        ("LpNormalization", "sum", "query", {"axis": 1, "p": 2}),
    )
    inputs = dict.fromkeys(("composed", "picture", "words"), ("b", DIM))
    return _model(inputs, {"query": ("b", DIM)}, nodes, {f"m{i}": toy.mix[i] for i in range(3)})


def _target_head(toy: Toy) -> onnx.ModelProto:
    nodes = _nodes(("MatMul", "image_raw fuse", "fused"), ("LpNormalization", "fused", "union", {"axis": 1, "p": 2}))
    return _model({"image_raw": ("b", DIM)}, {"union": ("b", DIM)}, nodes, {"fuse": toy.fuse})


def _golden(toy: Toy) -> dict[str, np.ndarray]:
    e0 = toy.text([])
    sentences = np.stack([toy.sentence(seed) for seed in range(3)])
    words = np.array(["in red", "", "make it smaller"])
    composed, picture, alone = [], [], []
    for sentence, said in zip(sentences, words, strict=True):
        before, typed = ["a", "photo", "of"], str(said).split()
        picture.append(toy.text([*before, sentence]))
        alone.append(toy.text(typed) if typed else e0)
        composed.append(toy.text([*before, sentence, ",", *typed]) if typed else picture[-1])
    pixels = np.random.default_rng(3).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    seen = toy.vectors(pixels)
    return {
        "sentence": sentences,
        "words": words,
        "composed": np.stack(composed),
        "picture": np.stack(picture),
        "words_feature": np.stack(alone),
        "query": np.stack([toy.query(*row) for row in zip(composed, picture, alone, strict=True)]),
        "pixels": pixels,
        "image_raw": seen["raw"],
        "image": seen["original"],
        "union": seen["union"],
    }


def build_toy(
    root: Path, *, targets: tuple[str, ...] = ("original", "union"), gallery_space: str = GALLERY_SPACE
) -> Toy:
    """Write a toy bundle's cloud half below `root`."""
    random = np.random.default_rng(11)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    toy = Toy(
        bundle=root,
        embedding=normal(len(SPECIAL) + len(WORDS), WIDTH),
        project=normal(WIDTH, DIM),
        see=normal(SIDE * SIDE * 3, DIM),
        fuse=normal(DIM, DIM),
        mix=np.array([1.0, 0.5, 0.25], np.float32),
        gallery_space=gallery_space,
    )
    folder = root / "cloud"
    folder.mkdir(parents=True)
    graphs = {"text_tower": _text_tower(toy), "image_tower": _image_tower(toy)}
    if "union" in targets:
        graphs |= {"query_head": _query_head(toy), "target_head": _target_head(toy)}
    for name, graph in graphs.items():
        onnx.checker.check_model(graph)
        onnx.save(graph, folder / f"{name}.onnx")
    _tokenizer().save(str(folder / "tokenizer.json"))
    np.savez(folder / "golden.npz", **_golden(toy))

    def file(name: str) -> manifest.File:
        return manifest.describe_file(folder / name)

    def tower(name: str) -> manifest.TowerGraph:
        # float32 sums of 16*16*3 products leave about 1e-6
        return manifest.describe_tower(folder / name, tolerance=1e-5)

    manifest.write(
        manifest.CloudManifest(
            name="toy",
            token_space=TOKEN_SPACE,
            gallery_space=gallery_space,
            encoders=[ENCODER],
            token_width=WIDTH,
            max_tokens=8,
            context=CONTEXT,
            dim=DIM,
            picture=PictureSpec(side=SIDE, fit="crop"),
            prompts=PROMPTS,
            text=LAYOUT,
            targets=list(targets),
            text_tower={"fp32": tower("text_tower.onnx")},
            image_tower={"fp32": tower("image_tower.onnx")},
            query_head=file("query_head.onnx") if "union" in targets else None,
            target_head=file("target_head.onnx") if "union" in targets else None,
            tokenizer=file("tokenizer.json"),
            golden=file("golden.npz"),
        ),
        folder,
    )
    return toy


def draw(path: Path, seed: int, side: int = 20) -> None:
    """One small picture, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def label(i: int) -> dict[str, str | int | float | bool]:
    return {"colour": ("red", "green", "blue")[i % 3], "count": i % 4, "price": i / 4, "sold": i % 2 == 0}


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Toy:
    return build_toy(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., Toy]:
    return build_toy


@pytest.fixture(scope="session")
def composer(toy) -> Composer:
    return Composer.load(toy.bundle)


@pytest.fixture(scope="session")
def draw_picture() -> Callable[..., None]:
    return draw


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """40 pictures in two folders, with payload.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    with (folder / "payload.jsonl").open("w") as lines:
        for i in range(40):
            name = f"{'ab'[i % 2]}/{i:03d}.png"
            draw(folder / name, i)
            lines.write(json.dumps({"file": name, "payload": label(i)}) + "\n")
    return folder


@pytest.fixture(scope="session")
def indexed(toy, pictures, tmp_path_factory) -> Path:
    """A gallery of `pictures`. Held by `service` for the whole session: copy it to write."""
    gallery = tmp_path_factory.mktemp("galleries") / "indexed"
    report = ingest.index(pictures, gallery, toy.bundle, batch=16)
    assert (report.indexed, report.size, report.unreadable) == (40, 40, [])
    return gallery


@pytest.fixture(scope="session")
def gallery(indexed) -> Iterator[EmbeddedGallery]:
    with EmbeddedGallery.open(indexed) as held:
        yield held


@pytest.fixture(scope="session")
def service(composer, gallery) -> Service:
    return Service(composer, gallery)


@contextmanager
def _serving(service: Service, **seams: Any) -> Iterator[RunningServer]:
    running = RunningServer(service, **seams)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    """A busy machine is not what is tried, but where a test says so: a wait for its turn turns no question away."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: the test's must be undone before the test's fixtures are
        patch.setattr(front, "PATIENCE_S", float("inf"))
        yield


class RunningServer:
    """The real server in a thread of its own, and a stub to it."""

    def __init__(self, service: Service, **seams: Any) -> None:
        self._service, self._seams = service, seams  # seams: as server.run takes them
        self._ready, self.ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            await server.run(
                self._service, host="127.0.0.1", port=0, on_ready=self._note, stop=self._stop, **self._seams
            )
        finally:
            self.ended.set()

    def _note(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._ready.set()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)
        self.channel = grpc.insecure_channel(self.address)
        self.stub = RetrievalStub(self.channel)

    def run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """In the server's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def tell_to_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        self.channel.close()
        if not self.ended.is_set():
            self.tell_to_stop()
        self._thread.join(15)
        assert not self._thread.is_alive()

    def search(self, request: pb.SearchRequest, timeout: float = 10) -> pb.SearchReply:
        return self.stub.Search(request, timeout=timeout)

    def raw(self, data: bytes, method: str = "Search", timeout: float = 10) -> bytes:
        """Send any bytes as the request."""
        return self.channel.unary_unary(f"/pocketlens.v1.Retrieval/{method}")(data, timeout=timeout)


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    return _serving


@pytest.fixture(scope="session")
def running(service) -> Iterator[RunningServer]:
    with _serving(service) as server:
        yield server


@contextmanager
def _embedded(home: Path) -> Iterator[Callable[..., Gallery]]:
    made: list[Gallery] = []

    def make(*, dim: int, vectors: list[str]) -> Gallery:
        path = home / str(len(made))
        made.append(EmbeddedGallery.create(path, dim=dim, vectors=vectors, gallery_space="gs-1"))
        return made[-1]

    yield make
    for gallery in made:
        gallery.close()


def _on_server(running: Running) -> Callable[..., Gallery]:
    """Collections, which go with `running`."""
    from pocketlens_cloud.gallery.remote import RemoteGallery

    def make(*, dim: int, vectors: list[str]) -> Gallery:
        name = f"{running.name}-{secrets.token_hex(3)}"
        return RemoteGallery.create(running.server, name, dim=dim, vectors=vectors, gallery_space="gs-1")

    return make


def _in_local_mode() -> Running:
    """qdrant-client's own engine in Python: a second opinion on what a request means."""
    from pocketlens_cloud.gallery.qdrant import Address, Server
    from qdrant_client import QdrantClient

    return Running(Server(Address(url="http://nowhere"), _Quiet(QdrantClient(":memory:"))), "local", lambda *_: "")


class _Quiet:
    """A client without its warnings that indexes and settings of searches have no effect in local mode."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **named: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                return method(*args, **named)

        return call


ENGINES = ["embedded", "local-mode", *SERVERS]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gallery]]:
    """`engine(dim=..., vectors=[...])` makes an empty gallery; tests that take it run once for each engine there is."""
    home = tmp_path_factory.mktemp("engine")
    if request.param == "embedded":
        with _embedded(home) as make:
            yield make
        return
    pytest.importorskip("qdrant_client", reason="pip install 'pocketlens[qdrant]'")
    if request.param == "local-mode":
        yield _on_server(_in_local_mode())
        return
    with SERVERS[request.param](home) as running:
        yield _on_server(running)


@pytest.fixture
def public_place() -> Iterator[Path]:
    """A folder all users may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.fixture
def without_rights() -> Callable[[], Any]:
    """`with without_rights():` root may not write everywhere either."""

    @contextmanager
    def as_nobody() -> Iterator[None]:
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    return as_nobody
