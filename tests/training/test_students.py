"""Any light encoder becomes a student: its map, its gradient, its graph; and what cannot is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pocketlens_training.nearest_words import Vocabulary
from pocketlens_training.students.backbones import TINY, CannotStudy, make_backbone
from pocketlens_training.students.student import MOST_TOKENS, make_student, median_norm, student_picture, words_of
from pocketlens_training.teachers.naming import load_teacher
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

OF_TIMM = {  # name -> (side, rows and columns of its map)
    "efficientnet_b0": (64, 2),
    "efficientnet_b2": (64, 2),
    "mobilenetv2_100": (64, 2),
    "mobilenetv3_small_100": (64, 2),
    "mobilenetv4_conv_small": (64, 2),
    "mobilevitv2_100": (64, 2),
    "repvit_m0_9": (64, 2),
    "fastvit_t8": (64, 2),
    "swin_tiny_patch4_window7_224": (224, 7),  # channels last
    "convnext_atto": (64, 2),
    "vit_tiny_patch16_224": (64, 4),  # a sequence with a class token before it
    "deit_tiny_patch16_224": (64, 4),
}


@pytest.fixture(scope="module")
def teacher(little: Path):
    return load_teacher(f"run:{little / 'teacher'}")


def pixels_of(side: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("side", [0, 64])
def test_tiny_backbones_give_a_map_at_a_sixteenth(name: str, side: int) -> None:
    backbone = make_backbone(name, side=side)
    assert backbone.side == (side or 96)
    seen = backbone(pixels_of(backbone.side))
    assert seen.shape == (2, (backbone.side // 16) ** 2, backbone.channels)
    assert backbone.channels == TINY[name][3]


def gradient_reaches(student, side: int) -> None:
    student.train()
    student(pixels_of(side)).square().sum().backward()
    # Not all: timm's classifiers have parameters that a map does not pass.
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in student.encoder.parameters()]
    assert reached[0]
    assert np.mean(reached) > 0.7


@pytest.mark.parametrize("tokens", range(1, MOST_TOKENS + 1))
def test_any_number_of_tokens(teacher, tokens: int) -> None:
    torch.manual_seed(0)
    student = make_student("tiny-s", teacher, tokens=tokens, side=32)
    assert student.tokens == tokens
    assert student(pixels_of(32)).shape == (2, tokens, teacher.word_width)
    gradient_reaches(student, 32)


@pytest.mark.parametrize("tokens", [0, MOST_TOKENS + 1])
def test_other_numbers_are_refused(teacher, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {MOST_TOKENS} tokens, {tokens} were asked for"):
        make_student("tiny-s", teacher, tokens=tokens)


def test_a_fresh_student_speaks_as_loud_as_words_and_sees_as_the_device_does(teacher) -> None:
    torch.manual_seed(0)
    student = make_student("tiny", teacher, tokens=4)
    loudness = float(student(pixels_of(96, 8)).norm(dim=2).mean().detach())
    assert 0.5 * median_norm(teacher) < loudness < 1.5 * median_norm(teacher)
    picture = student_picture(student, teacher)
    assert (picture.side, picture.fit, picture.resample) == (96, teacher.picture.fit, teacher.picture.resample)


@torch.no_grad()
def test_anchors_are_words_and_no_special_ids(teacher) -> None:
    words = words_of(teacher, 10)
    embedded = teacher.text.words.weight
    special = set(teacher.layout.special)
    ids = [int((embedded - word).norm(dim=1).argmin()) for word in words]
    assert len(words) == 10 and not special & set(ids)
    student = make_student("tiny-s", teacher, tokens=2, anchors=10)
    assert student.learner.anchors is not None
    assert torch.equal(student.learner.anchors, words)


def test_whole_words_of_word_pieces_are_no_letters_parts_or_free_rows() -> None:
    names = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "!", "red", "##dish", "mug", "of"]
    tokenizer = Tokenizer(WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    named = SimpleNamespace(
        tokenizer=tokenizer, text=SimpleNamespace(words=torch.nn.Embedding(len(names) + 2, 8)),
        layout=SimpleNamespace(special=[0, 3, 4], unknown=2),
    )  # fmt: skip
    assert [names[i] for i in Vocabulary(named).whole_words()] == ["red", "mug", "of"]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OF_TIMM)
def test_timms_models_give_a_map_of_places(teacher, name: str) -> None:
    pytest.importorskip("timm")
    side, grid = OF_TIMM[name]
    torch.manual_seed(0)
    student = make_student(name, teacher, tokens=3, side=side, pretrained=False)
    assert student.encoder.side == side
    seen = student.encoder(pixels_of(side))
    assert seen.shape == (2, grid * grid, student.encoder.channels)
    assert student(pixels_of(side)).shape == (2, 3, teacher.word_width)
    gradient_reaches(student, side)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-s", "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"])
def test_rows_of_the_picture_come_first(name: str) -> None:
    """A change in the lower left corner changes the place in the lower left corner most."""
    if name not in TINY:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    sized = OF_TIMM.get(name, (96, 6))
    side = max(128, sized[0])
    grid = sized[1] * side // sized[0]
    backbone = make_backbone(name, side=side, pretrained=False).eval()
    before = torch.full((1, side, side, 3), 128, dtype=torch.uint8)
    after = before.clone()
    corner = side // grid
    after[:, -corner:, :corner] = torch.randint(0, 256, (1, corner, corner, 3), dtype=torch.uint8)
    moved = (backbone(after) - backbone(before)).norm(dim=2)[0].reshape(grid, grid)
    assert int(moved.argmax()) == grid * (grid - 1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-s", "mobilenetv3_small_100", "deit_tiny_patch16_224"])
def test_the_graph_of_a_student_is_its_equal(teacher, tmp_path: Path, name: str) -> None:
    graphs = pytest.importorskip("pocketlens_export.graphs")
    import onnxruntime

    if name not in TINY:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    student = make_student(name, teacher, tokens=3, side=64, pretrained=False).eval()
    graphs.write_pixels_graph(student, tmp_path / "encoder.onnx", side=64, outputs=["sentence"])
    pixels = pixels_of(64, 5)
    (came,) = onnxruntime.InferenceSession(tmp_path / "encoder.onnx").run(None, {"pixels": pixels.numpy()})
    wanted = student(pixels).numpy()
    assert np.abs(came - wanted).max() < 1e-4 * np.linalg.norm(wanted, axis=2).mean()


def test_an_unknown_name_is_refused_with_names_near_it() -> None:
    pytest.importorskip("timm")
    with pytest.raises(
        CannotStudy, match="efficientnet_b99: neither tiny-s, tiny, tiny-l nor a model of timm; near it"
    ):
        make_backbone("efficientnet_b99")
    with pytest.raises(CannotStudy, match="zzz: neither"):
        make_backbone("zzz")


def test_without_timm_it_says_what_to_install(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CannotStudy, match=r"pip install 'pocketlens\[teachers\]'"):
        make_backbone("efficientnet_b0")


NAME = "mobilenetv3_small_050"


def test_weights_of_ones_own(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(4)
    weights = timm.create_model(NAME, pretrained=False, num_classes=7).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        backbone = make_backbone(f"{NAME}@{tmp_path / file}")
        mine = backbone.body.state_dict()
        assert all(torch.equal(mine[key], weights[key]) for key in mine)


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def test_files_that_are_no_such_weights_are_refused(tmp_path: Path, capsys) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(CannotStudy, match=r"no file .*none\.safetensors"):
        make_backbone(f"{NAME}@{tmp_path / 'none.safetensors'}")
    save_file(timm.create_model("mobilenetv2_050", pretrained=False).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(CannotStudy, match=r"other\.safetensors is of another architecture: it lacks"):
        make_backbone(f"{NAME}@{tmp_path / 'other.safetensors'}")
    weights = timm.create_model(NAME, pretrained=False).state_dict()
    first = next(iter(weights))
    save_file({**weights, first: torch.zeros(3)}, tmp_path / "bent.safetensors")
    with pytest.raises(CannotStudy, match=r"it has conv_stem\.weight as \(3,\)"):
        make_backbone(f"{NAME}@{tmp_path / 'bent.safetensors'}")
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CannotStudy, match=r"evil\.pt does not hold tensors alone"):
        make_backbone(f"{NAME}@{tmp_path / 'evil.pt'}")
    assert "unpickled" not in capsys.readouterr().out
    torch.save(torch.zeros(3), tmp_path / "bare.pt")
    with pytest.raises(CannotStudy, match=r"bare\.pt does not hold tensors alone"):
        make_backbone(f"{NAME}@{tmp_path / 'bare.pt'}")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(CannotStudy, match=r"cut\.safetensors does not hold tensors alone"):
        make_backbone(f"{NAME}@{tmp_path / 'cut.safetensors'}")
