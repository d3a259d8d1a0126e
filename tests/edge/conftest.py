"""A toy bundle whose encoder has the true signature, and a fake service on the real gRPC stack."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pocketlens_edge.cli import app
from pocketlens_edge.client import Client
from pocketlens_edge.encoder import Encoder
from pocketlens_wire.errors import KIND_METADATA, RETRY_METADATA
from pocketlens_wire.manifest import EdgeManifest, describe_encoder, describe_file, write
from pocketlens_wire.pictures import PictureSpec
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalServicer, add_RetrievalServicer_to_server

SIDE, COUNT, WIDTH = 32, 4, 192
TOKEN_SPACE, ENCODER = "ts-0123456789abcdef", "enc-0123456789abcdef"
TOLERANCE = 1e-4  # on sums of 48 products of order 1: float32 leaves about 1e-6


def toy_graph() -> onnx.ModelProto:
    """pixels -> normalised -> 8x8 means -> one linear map -> sentence. Sees colours and rough places."""
    random = np.random.default_rng(7)
    patches = (SIDE // 8) ** 2 * 3
    constants = {
        "scale": np.float32(1 / 255),
        "mean": np.array([0.48, 0.46, 0.41], np.float32),
        "std": np.array([0.27, 0.26, 0.28], np.float32),
        "weights": random.standard_normal((patches, COUNT * WIDTH)).astype(np.float32),
        "shape": np.array([-1, COUNT, WIDTH], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Transpose", ["normal"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["means"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["mapped"]),
        helper.make_node("Reshape", ["mapped", "shape"], ["sentence"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("sentence", TensorProto.FLOAT, ["batch", COUNT, WIDTH])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def reference(pixels: np.ndarray) -> np.ndarray:
    """What the toy graph should give, in numpy: the golden vectors do not come from the runtime under test."""
    patches = (SIDE // 8) ** 2 * 3
    weights = np.random.default_rng(7).standard_normal((patches, COUNT * WIDTH)).astype(np.float32)
    normal = (pixels / 255 - np.array([0.48, 0.46, 0.41])) / np.array([0.27, 0.26, 0.28])
    means = normal.reshape(-1, SIDE // 8, 8, SIDE // 8, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    return (means.reshape(len(pixels), -1) @ weights).reshape(-1, COUNT, WIDTH).astype(np.float32)


def golden_pixels() -> np.ndarray:
    """Six coloured gradients with noise: no two alike, none grey."""
    random = np.random.default_rng(1)
    ramp = np.linspace(0, 1, SIDE)
    colours = random.uniform(0, 255, (6, 1, 1, 3))
    pictures = colours * (0.4 + 0.6 * ramp[:, None, None]) + random.normal(0, 8, (6, SIDE, SIDE, 3))
    return np.clip(pictures, 0, 255).astype(np.uint8)


def write_edge(folder: Path, *, graph: onnx.ModelProto, sentence: np.ndarray | None = None) -> Path:
    """An edge half in `folder`, its hashes right whatever is in it."""
    folder.mkdir(parents=True)
    onnx.save(graph, folder / "encoder.fp32.onnx")
    pixels = golden_pixels()
    np.savez(folder / "golden.npz", pixels=pixels, sentence=reference(pixels) if sentence is None else sentence)
    manifest = EdgeManifest(
        name="toy",
        token_space=TOKEN_SPACE,
        token_count=COUNT,
        token_width=WIDTH,
        picture=PictureSpec(side=SIDE, fit="squash"),
        graphs={"fp32": describe_encoder(folder / "encoder.fp32.onnx", encoder=ENCODER, tolerance=TOLERANCE)},
        golden=describe_file(folder / "golden.npz"),
        report=None,
        page=None,
    )
    write(manifest, folder)
    return folder


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """The toy's parts by name: test files cannot import a conftest."""
    return SimpleNamespace(
        side=SIDE,
        count=COUNT,
        width=WIDTH,
        tolerance=TOLERANCE,
        token_space=TOKEN_SPACE,
        encoder_id=ENCODER,
        graph=toy_graph,
        golden_pixels=golden_pixels,
        reference=reference,
        write_edge=write_edge,
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole, healthy toy bundle (its edge half); read only."""
    root = tmp_path_factory.mktemp("bundle")
    write_edge(root / "edge", graph=toy_graph())
    return root


@pytest.fixture(scope="session")
def encoder(bundle: Path) -> Encoder:
    return Encoder.load(bundle)


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A healthy toy bundle that a test may damage."""
    write_edge(tmp_path / "own" / "edge", graph=toy_graph())
    return tmp_path / "own"


@pytest.fixture(scope="session")
def tokens(encoder: Encoder) -> np.ndarray:
    """float32 (4, 192) of a golden picture."""
    return encoder.encode_pixels(golden_pixels()[:1])[0]


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of 320 x 240."""
    path = tmp_path_factory.mktemp("photo") / "mug.jpg"
    noise = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


class FakeService(RetrievalServicer):
    """Answers every search with the same two hits, after the failures it was told to make."""

    def __init__(self) -> None:
        self.requests: list[pb.SearchRequest] = []
        self.calls = 0
        self.failures: deque[tuple[grpc.StatusCode, str, str]] = deque()
        self.retry_after = ""  # what is said beside a failure
        self.delay_s = 0.0
        self.files = ("one.png", "two.png")
        self.notes: list[str] = []
        self.edition = 2
        self.said: list[pb.ConverseRequest] = []  # in conversations
        self.go_on = threading.Event()  # a turn that says "wait" waits for it
        self.description = pb.DescribeReply(
            token_space=TOKEN_SPACE,
            gallery_space="gs-0123456789abcdef",
            encoders=[ENCODER],
            modes=[pb.MODE_ZERO_SHOT, pb.MODE_TUNED],
            gallery_size=3000,
            generation="g1",
            bundle="toy",
            server_version="0.1.0",
            provider="CPUExecutionProvider",
        )

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:  # noqa: N802
        self.calls += 1
        self.requests.append(request)
        time.sleep(self.delay_s)
        if self.failures:
            code, details, kind = self.failures.popleft()
            told = ((KIND_METADATA, kind), (RETRY_METADATA, self.retry_after))
            context.set_trailing_metadata(tuple((key, value) for key, value in told if value))
            context.abort(code, details)
        one = {"file": pb.Value(text=self.files[0]), "count": pb.Value(integer=2)}
        two = {"file": pb.Value(text=self.files[1]), "part": pb.Value(flag=True)}
        hits = [pb.Hit(id="a" * 40, score=0.5, payload=one), pb.Hit(id="b" * 40, score=0.25, payload=two)]
        return pb.SearchReply(
            hits=hits[: request.top],
            times=pb.StageTimes(check_ms=0.1, queue_ms=0.2, text_tower_ms=3, heads_ms=0.3, search_ms=1, total_ms=4.6),
            token_space=TOKEN_SPACE,
            gallery_space="gs-0123456789abcdef",
            mode=request.mode or pb.MODE_TUNED,
            generation="g1",
            notes=self.notes,
            edition=self.edition,
        )

    def Converse(self, request_iterator: Iterator[pb.ConverseRequest], context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Counts turns and keeps what is added; a turn that adds "no", "wait" or "end" is refused, late or the last."""
        state = pb.State(mode=pb.MODE_TUNED)
        for number, message in enumerate(request_iterator, start=1):
            self.said.append(message)
            added = list(message.open.modifiers) if number == 1 else [message.turn.add]
            words = added[0].words if added else ""
            if words == "end":
                context.set_trailing_metadata(((KIND_METADATA, "SpaceMismatch"),))
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the spaces are not one")
            if words == "bye":
                return
            if words == "wait":
                self.go_on.wait(10)
            if words in ("no", "later"):
                refusal = pb.TurnError(kind="BadQuery", message="the query is empty")
                if words == "later":
                    refusal = pb.TurnError(kind="Overloaded", message="try again", retry_after_ms=250)
                yield pb.ConverseReply(turn=number, state=state, error=refusal)
                continue
            if number == 1:
                state.top = message.open.top
            state.modifiers.extend(pb.InForce(turn=number, modifier=each) for each in added if each.words)
            state.skip = message.turn.skip
            reply = self.Search(pb.SearchRequest(top=state.top), context)
            yield pb.ConverseReply(turn=number, state=state, reply=reply)

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:  # noqa: N802
        return self.description


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def server(service: FakeService) -> Iterator[str]:
    """HOST:PORT of a real gRPC server around the fake service."""
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        add_RetrievalServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        stopped: threading.Event = server.stop(grace=0)
        stopped.wait()


@pytest.fixture
def replicas() -> Iterator[list[tuple[grpc.Server, FakeService, str]]]:
    """Two servers, each around a service of its own, and where they listen."""
    with ThreadPoolExecutor(4) as threads:
        made = []
        for _ in range(2):
            server, service = grpc.server(threads), FakeService()
            add_RetrievalServicer_to_server(service, server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            made.append((server, service, f"127.0.0.1:{port}"))
        yield made
        for server, _, _ in made:
            server.stop(grace=0).wait()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server, token_space=TOKEN_SPACE, encoder_id=ENCODER) as client:
        yield client


@dataclass(frozen=True)
class Ran:
    """How a command ended: exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        (line,) = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run `pocketlens-edge` as its entry point does, with the toy bundle as the default one."""
    monkeypatch.setenv("POCKETLENS_BUNDLE", str(bundle))
    monkeypatch.setenv("COLUMNS", "120")

    def command(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as left:
            app([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(int(left.value.code or 0), out, err)

    return command
