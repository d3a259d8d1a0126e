"""A wrong model never answers, a right one always does: pairs of halves and galleries, generated.

Two trainings are made to differ in one thing (a weight, a word, a prompt, how a picture is cut ...) and bundled as the
customs would, with ids minted by its own functions and graphs that hold the changed weights; then every half meets
every other over gRPC. Only the tracing of graphs is spared: the changed numbers are written into the traced ones."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Point
from pocketlens_cloud.indexing import ingest
from pocketlens_cloud.local import open_local
from pocketlens_cloud.service import Service
from pocketlens_edge import BadBundle, Client, Encoder, PocketlensError, SpaceMismatch
from pocketlens_export import bundle as customs
from pocketlens_export.forms import describe_form, half_precision, runtime_format
from pocketlens_training.checkpoint import Trained, load_run
from pocketlens_training.students.student import make_student
from pocketlens_training.targets import make_target
from pocketlens_training.tuning import Heads
from pocketlens_wire import manifest as manifests
from pocketlens_wire.errors import KIND_METADATA
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub
from tokenizers import Tokenizer
from torch import nn

WORDS = "red"
FEWEST = 200  # pairs that must be refused


@dataclass
class Training:
    """A training that may be changed before it is bundled.

    graphs: modules whose numbers a graph holds, by the graph's file. count, width: of its tokens."""

    trained: Trained
    slots: str = customs.SLOT_LAYOUT
    graphs: dict[str, nn.Module] = field(default_factory=dict)

    def teacher(self, **changes: Any) -> None:
        self.trained = replace(self.trained, teacher=replace(self.trained.teacher, **changes))

    def layout(self, **changes: Any) -> None:
        self.teacher(layout=replace(self.trained.teacher.layout, **changes))

    def prompts(self, **changes: str) -> None:
        self.teacher(prompts=replace(self.trained.teacher.prompts, **changes))

    def picture(self, **changes: Any) -> None:
        self.teacher(picture=replace(self.trained.teacher.picture, **changes))

    def tokenizer(self, edit: Callable[[dict[str, Any]], object]) -> None:
        raw = json.loads(self.trained.teacher.tokenizer.to_str())
        edit(raw)
        self.teacher(tokenizer=Tokenizer.from_str(json.dumps(raw)))

    def target(self, name: str, *, empty: float = 1.0) -> None:
        """Heads of another kind of target, fresh."""
        assert self.trained.heads is not None and self.trained.head_recipe is not None
        torch.manual_seed(0)
        made = make_target(name, empty * self.trained.heads.target.empty_raw[0]).eval()
        self.trained = replace(
            self.trained, heads=Heads(self.trained.heads.query, made),
            head_recipe=replace(self.trained.head_recipe, target=name),
        )  # fmt: skip

    def student(self, tokens: int, *, anchors: int = 0) -> None:
        """A fresh student of so many tokens."""
        torch.manual_seed(tokens)
        made = make_student("tiny-s", self.trained.teacher, tokens=tokens, anchors=anchors).eval()
        self.trained = replace(self.trained, student=made)

    def swap_words(self, vocabulary: dict[str, int]) -> None:
        one, other = (word for word in vocabulary if word in ("red", "blue"))
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


Change = Callable[[Training], object]


def scaled(part: str, name: str) -> Change:
    """A change of 2 percent of one tensor, in module and graph."""

    def change(training: Training) -> None:
        module = _part(training.trained, part)
        with torch.no_grad():
            module.state_dict()[name].mul_(1.02)

    return change


def anew(part: str) -> Change:
    """Another tower of the same architecture and widths: other numbers throughout."""

    def change(training: Training) -> None:
        torch.manual_seed(1)
        with torch.no_grad():
            for tensor in _part(training.trained, part).parameters():
                tensor.copy_(0.1 * torch.randn_like(tensor))

    return change


def of_pixels(training: Training) -> None:
    """A backbone whose mean of pixels is no part of its checkpoint, as those of timm."""
    training.trained.student.encoder.register_buffer("mean", torch.tensor([1.0, 2.0, 3.0]), persistent=False)


def of_other_pixels(training: Training) -> None:
    training.trained.student.encoder.register_buffer("mean", torch.tensor([1.0, 2.0, 4.0]), persistent=False)


TEXT: dict[str, Change] = {
    "the same": lambda t: None,
    "another text tower of equal width": anew("text"),
    "its words": scaled("text", "words.weight"),
    "its places": scaled("text", "positions"),
    "its attention": scaled("text", "blocks.0.query_key_value.weight"),
    "its last layer": scaled("text", "blocks.1.mlp.2.weight"),
    "its norm": scaled("text", "norm.weight"),
    "its projection": scaled("text", "project.weight"),
    "its architecture": lambda t: t.teacher(signature="pocketlens towers v2"),
    "words swapped": lambda t: t.tokenizer(lambda raw: t.swap_words(raw["model"]["vocab"])),
    "a word more": lambda t: t.tokenizer(lambda raw: raw["model"]["vocab"].update(zebra=len(raw["model"]["vocab"]))),
    "case kept": lambda t: t.tokenizer(lambda raw: raw.update(normalizer={"type": "NFKC"})),
    "cut elsewhere": lambda t: t.tokenizer(lambda raw: raw.update(pre_tokenizer={"type": "WhitespaceSplit"})),
    "prompt of both": lambda t: t.prompts(composed="a picture of {sentence}, {words}"),
    "order of the prompt": lambda t: t.prompts(composed="{words}, a photo of {sentence}"),
    "prompt of a picture": lambda t: t.prompts(picture="a drawing of {sentence}"),
    "prompt of words": lambda t: t.prompts(words="a photo of {words}"),
    "beginning": lambda t: t.layout(begin=[1, 1]),
    "end": lambda t: t.layout(end=[2, 2]),
    "padding": lambda t: t.layout(pad=2),
    "slot": lambda t: t.layout(slot=3),
    "special ids": lambda t: t.layout(special=[0, 1, 2, 3, 4]),
    "unknown word": lambda t: t.layout(unknown=4),
    "length of rows": lambda t: t.layout(fixed_length=True),
    "cleaning": lambda t: t.layout(clean=["plain", "lower", "spaces"]),
    "order of cleaning": lambda t: t.layout(clean=["spaces", "plain"]),
    "layout of slots": lambda t: setattr(t, "slots", "v1: sentence before the prompt"),
}
ENCODER: dict[str, Change] = {
    "the same": lambda t: None,
    "its first convolution": scaled("student", "encoder.body.0.0.weight"),
    "its queries": scaled("student", "learner.queries"),
    "its last norm": scaled("student", "learner.out_norm.weight"),
    "its start": scaled("student", "learner.start.weight"),
    "mean of its pixels": of_pixels,
    "other mean of its pixels": of_other_pixels,
    "side": lambda t: setattr(t.trained.student.encoder, "side", 80),
    "fit": lambda t: t.picture(fit="squash"),
    "resampling": lambda t: t.picture(resample="bilinear"),
    "1 token": lambda t: t.student(1),
    "2 tokens": lambda t: t.student(2),
    "4 tokens, trained anew": lambda t: t.student(4),
    "4 tokens of words": lambda t: t.student(4, anchors=32),
    "8 tokens": lambda t: t.student(8),
}
GALLERY: dict[str, Change] = {
    "the same": lambda t: None,
    "another image tower of equal width": anew("image"),
    "its first convolution": scaled("image", "body.0.0.weight"),
    "its query": scaled("image", "query"),
    "its projection": scaled("image", "project.weight"),
    "side": lambda t: t.picture(side=128),
    "fit": lambda t: t.picture(fit="squash"),
    "resampling": lambda t: t.picture(resample="bilinear"),
    "architecture, pixels": lambda t: t.teacher(signature="pocketlens towers v2"),
    "older heads": scaled("target", "fusion.residual.weight"),
    "heads trained anew": lambda t: t.target("union-gated"),
    "another empty prompt": lambda t: t.target("union-gated", empty=1.02),
    "no heads": lambda t: setattr(t, "trained", replace(t.trained, heads=None, head_recipe=None)),
    "sum": lambda t: t.target("sum"),
    "sum with half": lambda t: t.target("sum:0.5"),
    "sum with less": lambda t: t.target("sum:-0.5"),
    "light fusion": lambda t: t.target("union-light"),
    "fusion as published": lambda t: t.target("union"),
}


def _part(trained: Trained, name: str) -> Any:
    heads = trained.heads
    return {
        "text": trained.teacher.text, "image": trained.teacher.image, "student": trained.student,
        "target": heads.target if heads else None,
    }[name]  # fmt: skip


# --- bundling, without tracing


@dataclass(frozen=True)
class Customs:
    """Bundles of a training and its variants, in a folder."""

    trained: Trained
    exported: Path
    folder: Path

    def bundle(self, name: str, change: Change, *, accept: list[str] | None = None) -> Path:
        out = self.folder / f"{len(list(self.folder.iterdir()))}"
        shutil.copytree(self.exported, out, copy_function=os.link)
        training = Training(_copied(self.trained))
        change(training)
        self._write(out, name, training, accept or [])
        return out

    def _write(self, out: Path, name: str, training: Training, accept: list[str]) -> None:
        trained, was = training.trained, self.trained
        teacher = trained.teacher
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(customs, "SLOT_LAYOUT", training.slots)
            space, encoder = customs.token_space(teacher), customs.encoder_id(trained.student, teacher)
        union = trained.heads.target if trained.heads else None
        place = customs.gallery_space(teacher, union)
        repaint(out / "cloud/text_tower.onnx", was.teacher.text, teacher.text)
        repaint(out / "cloud/image_tower.onnx", was.teacher.image, teacher.image)
        if trained.student.tokens == was.student.tokens:
            repaint(out / "edge/encoder.fp32.onnx", was.student, trained.student)
        renewed(out / "cloud/tokenizer.json", teacher.tokenizer.to_str().encode())
        edge, cloud = manifests.read_edge(self.exported), manifests.read_cloud(self.exported)
        graph = manifests.describe_encoder(
            out / "edge/encoder.fp32.onnx", encoder=encoder, tolerance=edge.graph().tolerance
        )
        manifests.write(
            replace(
                edge, name=name, token_space=space, token_count=trained.student.tokens, graphs={"fp32": graph},
                picture=customs.student_picture(trained.student, teacher),
            ),
            _emptied(out / "edge"),
        )  # fmt: skip
        file, tower = manifests.describe_file, manifests.describe_tower
        manifests.write(
            replace(
                cloud, name=name, token_space=space, gallery_space=place, encoders=[encoder, *accept],
                picture=teacher.picture, prompts=teacher.prompts, text=teacher.layout,
                targets=["original"] if union is None else ["original", "union"],
                text_tower={"fp32": tower(out / "cloud/text_tower.onnx", tolerance=1e-4)},
                image_tower={"fp32": tower(out / "cloud/image_tower.onnx", tolerance=1e-4)},
                query_head=None if union is None else cloud.query_head,
                target_head=None if union is None else cloud.target_head,
                tokenizer=file(out / "cloud/tokenizer.json"),
            ),
            _emptied(out / "cloud"),
        )  # fmt: skip


def _copied(trained: Trained) -> Trained:
    made = {name: copy.deepcopy(getattr(trained, name)) for name in ("student", "heads")}
    teacher = replace(
        trained.teacher, image=copy.deepcopy(trained.teacher.image), text=copy.deepcopy(trained.teacher.text),
        tokenizer=Tokenizer.from_str(trained.teacher.tokenizer.to_str()),
    )  # fmt: skip
    return replace(trained, teacher=teacher, **made)


def repaint(path: Path, was: nn.Module, now: nn.Module) -> None:
    """Write the numbers that changed from `was` to `now` into the graph, wherever it holds them.

    A convolution may have taken in its batch norm: then it scales as its weight does."""
    changed = {
        name: (tensor.numpy(), now.state_dict()[name].numpy())
        for name, tensor in was.state_dict().items()
        if name in now.state_dict() and not torch.equal(tensor, now.state_dict()[name])
    }
    if not changed:
        return
    model, left = onnx.load(path), set(changed)
    for held in model.graph.initializer:
        values = numpy_helper.to_array(held)
        for name, (old, new) in changed.items():
            if values.shape == old.shape and np.array_equal(values, old):
                made = new
            elif values.ndim == 2 and values.shape == old.T.shape and np.array_equal(values, old.T):
                made = new.T
            elif values.ndim == 4 and held.name.endswith(name):
                made = values * (new.sum() / old.sum())
            else:
                continue
            held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(made, values.dtype), held.name))
            left.discard(name)
            break
    constant = {name for name in left if name.endswith(("num_batches_tracked", "running_mean", "running_var"))}
    fused = {name for name in left if ".body." in name or name.startswith("body.")}
    folded = {name for name in left if name in ("learner.gain", "learner.out.weight", "learner.out.bias")}
    assert left <= constant | fused | folded and left != set(changed), f"{path.name} does not hold {sorted(left)}"
    renewed(path, model.SerializeToString())


def renewed(path: Path, data: bytes) -> None:
    """Another file of that name: the old one may have other names still."""
    path.unlink()
    path.write_bytes(data)


def _emptied(half: Path) -> Path:
    (half / manifests.MANIFEST).unlink()
    return half


@pytest.fixture(scope="module")
def office(tiny_run: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Customs:
    return Customs(load_run(tiny_run), tiny_bundle, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def galleries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], EmbeddedGallery]]:
    """The gallery that a bundle's vectors lie in, open; a few pictures in it."""
    held: dict[str, EmbeddedGallery] = {}

    def of(bundle: Path) -> EmbeddedGallery:
        manifest = manifests.read_cloud(bundle)
        if manifest.gallery_space not in held:
            made = EmbeddedGallery.create(
                tmp_path_factory.mktemp("galleries") / "gallery", dim=manifest.dim, vectors=manifest.targets,
                gallery_space=manifest.gallery_space,
            )  # fmt: skip
            random = np.random.default_rng(0)
            vectors = [random.standard_normal(manifest.dim).astype(np.float32) for _ in range(4)]
            made.upsert([Point(f"{i:032x}", dict.fromkeys(manifest.targets, v)) for i, v in enumerate(vectors)])
            made.flush()
            held[manifest.gallery_space] = made
        return held[manifest.gallery_space]

    with ExitStack() as closing:
        yield of
        for gallery in held.values():
            closing.callback(gallery.close)


# --- asking


@dataclass(frozen=True)
class Device:
    """An edge half, and tokens that could be its."""

    token_space: str
    encoder: str
    tokens: np.ndarray  # (count, width)

    @classmethod
    def of(cls, bundle: Path, form: str = "fp32") -> Device:
        manifest = manifests.read_edge(bundle)
        tokens = np.random.default_rng(0).standard_normal((manifest.token_count, manifest.token_width))
        return cls(manifest.token_space, manifest.graph(form).encoder, tokens.astype(np.float32))

    def question(self, *, words_alone: bool = False, **forged: str) -> pb.SearchRequest:
        ids = {"token_space": self.token_space, "encoder_id": self.encoder} | forged
        with Client("x:1", **ids) as client:
            return client.question(None if words_alone else self.tokens, WORDS)


@dataclass(frozen=True)
class Refusal:
    status: grpc.StatusCode
    said: str
    kind: str


def ask(stub: RetrievalStub, question: pb.SearchRequest) -> pb.SearchReply | Refusal:
    try:
        return stub.Search(question, timeout=10)
    except grpc.RpcError as error:
        return Refusal(error.code(), error.details(), dict(error.trailing_metadata()).get(KIND_METADATA, ""))


def expect_refused(came: pb.SearchReply | Refusal, pair: str, *ids: str) -> None:
    assert isinstance(came, Refusal), f"{pair}: a wrong model was answered"
    assert came.status is grpc.StatusCode.FAILED_PRECONDITION, f"{pair}: {came}"
    assert came.kind == SpaceMismatch.__name__, f"{pair}: {came}"
    for id_ in ids:
        assert id_ in came.said, f"{pair}: {came.said} does not name {id_}"
    assert "Install the edge half of bundle" in came.said, f"{pair}: {came.said}"


def refused_pairs(
    bundles: Mapping[str, Path],
    galleries: Callable[[Path], EmbeddedGallery],
    serve: Any,
    id_of: Callable[[Device], str],
) -> int:
    """Let every device ask every server; returns how many were refused, which must be all but those of one bundle.

    id_of: the id in which two bundles differ. One server is also asked by words alone, and with the same tokens under
    its own ids, which it answers: it is the ids that refuse, not a shape or a limit."""
    devices = {name: Device.of(bundle) for name, bundle in bundles.items()}
    refused = 0
    for there, bundle in bundles.items():
        service = Service(Composer.load(bundle), galleries(bundle))
        with serve(service) as address, grpc.insecure_channel(address) as channel:
            stub, own = RetrievalStub(channel), devices[there]
            for here, device in devices.items():
                pair, came = f"{here} asks {there}", ask(stub, device.question())
                if here == there:
                    assert isinstance(came, pb.SearchReply), f"{pair}: refused, {came}"
                    continue
                expect_refused(came, pair, id_of(device), id_of(own))
                refused += 1
                if there != "the same":
                    continue
                alone = ask(stub, device.question(words_alone=True))
                if device.token_space == own.token_space:
                    assert isinstance(alone, pb.SearchReply), f"{pair} by words: {alone}"
                else:
                    expect_refused(alone, f"{pair} by words", device.token_space, own.token_space)
                forged = ask(stub, device.question(token_space=own.token_space, encoder_id=own.encoder))
                assert isinstance(forged, pb.SearchReply), f"{pair} with forged ids: {forged}"
    return refused


def test_the_shortcut_mints_what_the_customs_mint(office):
    """Else all that follows would speak of other ids than bundles have."""
    again = office.bundle("again", TEXT["the same"])
    assert Device.of(again).question() == Device.of(office.exported).question()
    one, other = manifests.read_cloud(again), manifests.read_cloud(office.exported)
    assert one.gallery_space == other.gallery_space
    assert one.encoders == other.encoders


def test_what_tokens_mean(office, galleries, serve):
    bundles = {name: office.bundle(name, change) for name, change in TEXT.items()}
    refused = refused_pairs(bundles, galleries, serve, lambda device: device.token_space)
    assert refused == len(TEXT) * (len(TEXT) - 1) >= FEWEST


def test_which_encoder_made_them(office, galleries, serve):
    bundles = {name: office.bundle(name, change) for name, change in ENCODER.items()}
    refused = refused_pairs(bundles, galleries, serve, lambda device: device.encoder)
    assert refused == len(ENCODER) * (len(ENCODER) - 1) >= FEWEST


def test_where_gallery_vectors_lie(office, galleries, tmp_path):
    """At the door already: no server is served with a gallery of another space, and none is indexed into."""
    bundles = {name: office.bundle(name, change) for name, change in GALLERY.items()}
    spaces = {name: manifests.read_cloud(bundle).gallery_space for name, bundle in bundles.items()}
    Image.new("RGB", (32, 32), "red").save(tmp_path / "one.png")
    refused = 0
    for served, bundle in bundles.items():
        composer = Composer.load(bundle)
        for indexed, other in bundles.items():
            pair, gallery = f"{served} upon the gallery of {indexed}", galleries(other)
            if served == indexed:
                Service(composer, gallery)
                continue
            try:
                Service(composer, gallery)
            except SpaceMismatch as error:
                said = str(error)
            else:
                pytest.fail(f"{pair}: was served")
            assert spaces[served] in said and spaces[indexed] in said, f"{pair}: {said}"
            assert "index again" in said
            refused += 1
    assert refused == len(GALLERY) * (len(GALLERY) - 1) >= FEWEST
    shutil.copytree(galleries(bundles["the same"]).path, tmp_path / "gallery")
    for name in list(GALLERY)[1:]:
        for attempt in (
            lambda bundle: ingest.index(tmp_path, tmp_path / "gallery", bundle),
            lambda bundle: open_local(tmp_path / "gallery", bundle),
        ):
            with pytest.raises(SpaceMismatch) as caught:
                attempt(bundles[name])
            assert spaces[name] in str(caught.value) and spaces["the same"] in str(caught.value)


# --- files that are not the ones that were exported


def _flipped(at: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        place = min(len(data) - 1, int(at * len(data)))
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return damage


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "first byte": _flipped(0), "a byte": _flipped(0.4), "another byte": _flipped(0.8), "last byte": _flipped(1),
    "cut": lambda data: data[:-1], "longer": lambda data: data + b"\0", "empty": lambda data: b"",
}  # fmt: skip


def test_altered_files_and_files_of_another_bundle(office, tmp_path):
    other = office.bundle("other", lambda t: [change(t) for change in (anew("text"), anew("image"),
        scaled("student", "learner.out_norm.weight"), TEXT["a word more"])])  # fmt: skip
    loaders: dict[str, Callable[[Path], object]] = {"edge": Encoder.load, "cloud": Composer.load}
    refused = 0
    for half, load in loaders.items():
        for path in sorted((office.exported / half).iterdir()):
            if path.name == manifests.MANIFEST:
                continue
            whole, strange = path.read_bytes(), (other / half / path.name).read_bytes()
            damaged = {name: damage(whole) for name, damage in DAMAGE.items()}
            if strange != whole:
                damaged["another bundle's"] = strange
            for name, data in damaged.items():
                folder = tmp_path / f"{half}-{path.name}-{name}"
                shutil.copytree(office.exported / half, folder, copy_function=os.link)
                renewed(folder / path.name, data)
                try:
                    load(folder)
                except BadBundle as error:
                    said = str(error)
                else:
                    pytest.fail(f"{folder.name}: was loaded")
                assert f"{folder / path.name}" in said
                assert "Get the bundle again" in said
                refused += 1
    assert refused >= 60


def test_halves_exchanged_without_their_manifests(office, tmp_path):
    """Each half is checked on its own; that they are of one bundle is what the ids are for."""
    other = office.bundle("other", anew("text"))
    shutil.copytree(other / "cloud", tmp_path / "mixed" / "cloud")
    shutil.copytree(office.exported / "edge", tmp_path / "mixed" / "edge")
    shutil.copy(office.exported / "cloud" / manifests.MANIFEST, tmp_path / "mixed" / "cloud")
    with pytest.raises(BadBundle, match=r"text_tower\.onnx: altered since export"):
        Composer.load(tmp_path / "mixed")


# --- forms: other precision is another encoder


@pytest.fixture(scope="module")
def forms(office) -> tuple[Path, dict[str, manifests.EncoderGraph]]:
    """An edge half in five forms, made as the customs make them, and what its manifest says of each."""
    half = office.folder.parent / "forms"
    shutil.copytree(office.exported / "edge", half, dirs_exist_ok=True)
    manifest, original = manifests.read_edge(half), half / "encoder.fp32.onnx"
    half_precision(original, half / "encoder.fp16.onnx")
    quantize_dynamic(original, half / "encoder.int8.onnx", weight_type=QuantType.QInt8)
    for form in ("fp32", "int8"):
        runtime_format(half / f"encoder.{form}.onnx", half / f"encoder.{form}.ort")
    graphs = {"fp32": manifest.graph("fp32")}
    for form, file in (
        ("fp16", "fp16.onnx"),
        ("int8", "int8.onnx"),
        ("fp32.ort", "fp32.ort"),
        ("int8.ort", "int8.ort"),
    ):
        of = graphs[form.removesuffix(".ort")] if form.endswith(".ort") else graphs["fp32"]
        graphs[form] = describe_form(half / f"encoder.{file}", of, form, half, manifest)
    (half / manifests.MANIFEST).unlink()
    manifests.write(replace(manifest, graphs=graphs), half)
    return half, graphs


def test_forms_the_server_was_not_told_of(office, forms, galleries, serve):
    half, graphs = forms
    service = Service(Composer.load(office.exported), galleries(office.exported))
    with serve(service) as address:
        for form in ("fp16", "int8", "int8.ort"):
            encoder = Encoder.load(half, precision=form)
            with Client(address, encoder) as client, pytest.raises(SpaceMismatch) as caught:
                client.search(encoder.encode(Image.new("RGB", (64, 64), "red")), WORDS)
            assert graphs[form].encoder in str(caught.value)
            assert graphs["fp32"].encoder in str(caught.value)


# --- what belongs together is answered


def test_what_belongs_together_is_answered(office, forms, galleries, serve, tiny_run):
    half, graphs = forms
    sibling = office.bundle("sibling", ENCODER["2 tokens"])
    accepted = [graphs["fp16"].encoder, graphs["int8"].encoder, Device.of(sibling).encoder]
    read_anew = Customs(load_run(tiny_run), office.exported, office.folder)
    clouds = {
        "as exported": office.exported,
        "exported again, of another name": read_anew.bundle("new", TEXT["the same"]),
        "its tokenizer told to pad and to cut": office.bundle("pad", told_to_pad),
        "that takes others too": office.bundle("all", TEXT["the same"], accept=accepted),
    }
    for name in ("another image tower of equal width", "side", "older heads", "no heads", "sum", "light fusion"):
        clouds[f"another gallery: {name}"] = office.bundle(name, GALLERY[name])
    alike = {name: clouds[name] for name in list(clouds)[:3]}
    answered = 0
    for there, bundle in clouds.items():
        with serve(Service(Composer.load(bundle), galleries(bundle))) as address:
            devices = {name: Device.of(of) for name, of in alike.items()} | {"fp32.ort": Device.of(half, "fp32.ort")}
            if there == "that takes others too":
                devices |= {form: Device.of(half, form) for form in ("fp16", "int8", "int8.ort")}
                devices["sibling"] = Device.of(sibling)
            for here, device in devices.items():
                for words_alone in (False, True):
                    with Client(address, token_space=device.token_space, encoder_id=device.encoder) as client:
                        try:
                            hits = client.search(None if words_alone else device.tokens, WORDS).hits
                        except PocketlensError as error:
                            pytest.fail(f"{here} asks {there}: refused, {error}")
                    assert len(hits) == 4
                    answered += 1
    assert answered >= 80


def told_to_pad(training: Training) -> None:
    training.trained.teacher.tokenizer.enable_padding(length=9)
    training.trained.teacher.tokenizer.enable_truncation(5)


def test_galleries_of_bundles_that_mean_the_same_are_served(office, galleries):
    """Names of bundles, encoders and text towers are no matter to a gallery; nor is how a sum's weight is written."""
    changes = [
        TEXT["its words"],
        TEXT["words swapped"],
        TEXT["prompt of both"],
        ENCODER["its last norm"],
        ENCODER["8 tokens"],
    ]
    same = [office.exported, *(office.bundle("same", change) for change in changes)]
    sums = [office.bundle(name, lambda t, n=name: t.target(n)) for name in ("sum", "sum:1", "sum:1.0")]
    for alike in (same, sums):
        for bundle in alike:
            for other in alike:
                Service(Composer.load(bundle), galleries(other))


def test_each_form_of_the_same_encoder_may_be_asked_with(forms, office, galleries, serve):
    half, _ = forms
    with serve(Service(Composer.load(office.exported), galleries(office.exported))) as address:
        for form in ("fp32", "fp32.ort"):
            encoder = Encoder.load(half, precision=form)
            with Client(address, encoder) as client:
                assert client.search(encoder.encode(Image.new("RGB", (64, 64), "red")), WORDS).hits
