"""A finished training to a bundle: write, mint, check, and only then put in place.

Owns the bundle's layout, the two ids and the report. Nothing is left behind under the asked name when a check
fails: the bundle is built beside it and renamed at the end."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from pocketlens_training.checkpoint import Trained, load_run
from pocketlens_training.cost import multiply_adds, parameters
from pocketlens_training.recipe import PROMPTS
from pocketlens_training.text import LAYOUT
from pocketlens_wire import manifest as manifests
from pocketlens_wire.pictures import PictureSpec
from pocketlens_wire.spaces import digest_arrays, mint
from torch import nn

from pocketlens_export import parity
from pocketlens_export.graphs import (
    OPSET,
    RawAndUnitImage,
    write_pixels_graph,
    write_rows_graph,
    write_text_tower,
)

SLOT_LAYOUT = "v1: [bos] prompt-before sentence prompt-after [eos]; sentence by position; feature read at [eos]"
GOLDEN_ROWS = 8
PARITY_ROWS = 64


def export_bundle(run: Path, out: Path, *, name: str, accept: list[str] | None = None) -> dict[str, object]:
    """Write the bundle of training `run` to `out` and return its report.

    name: shown to people. accept: further encoder ids the cloud half takes (other students of the same token
    space). Raises FileNotFoundError for an unfinished run, FileExistsError when `out` exists, parity.NotEqual when a
    graph differs from its torch original."""
    with put_in_place(out) as building:
        return _build(load_run(run), building, name, accept or [])


@contextmanager
def put_in_place(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when all went well, and is removed when not.

    Raises FileExistsError when `out` exists."""
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another name or remove it")
    building = out.with_name(f".{out.name}.{os.getpid()}")
    building.mkdir(parents=True)
    try:
        yield building
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build(trained: Trained, folder: Path, name: str, accept: list[str]) -> dict[str, object]:
    for half in ("edge", "cloud", "baselines"):
        (folder / half).mkdir()
    _write_graphs(trained, folder)
    given = parity.material(PARITY_ROWS, trained.recipe.seed)
    expected = parity.originals(trained, given)
    edge = write_edge(trained, trained.student, folder / "edge", given.pixels, expected.sentence, name=name)
    _write_golden(folder, given, expected)
    ids = _write_cloud(trained, edge, folder, name, accept)
    checks = parity.check_bundle(folder, given, expected)
    report = {"name": name, **ids, **_report(trained, folder), "parity": parity.as_report(checks)}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _write_graphs(trained: Trained, folder: Path) -> None:
    recipe, cloud, baselines = trained.recipe, folder / "cloud", folder / "baselines"
    teacher = trained.teacher
    write_text_tower(teacher.text, cloud / "text_tower.onnx", width=recipe.word_width, context=recipe.context)
    write_pixels_graph(
        RawAndUnitImage(teacher.image), cloud / "image_tower.onnx", side=recipe.side,
        outputs=["image_raw", "image", "places"],
    )  # fmt: skip
    query = {"inputs": ["composed", "picture", "words"], "shape": (recipe.dim,), "output": "query"}
    write_rows_graph(trained.heads.query, cloud / "query_head.onnx", **query)
    write_rows_graph(
        trained.heads.target,
        cloud / "target_head.onnx",
        inputs=["image_raw"],
        shape=(recipe.dim,),
        output="union",
    )
    write_rows_graph(trained.control.query, baselines / "query_head_control.onnx", **query)
    with torch.no_grad():
        side = recipe.side
        places = tuple(teacher.image.places(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1:])
    write_rows_graph(
        trained.symmetric, baselines / "symmetric.onnx", inputs=["places"], shape=places, output="sentence"
    )
    shutil.copyfile(trained.tokenizer_file, cloud / "tokenizer.json")
    files = {
        "symmetric": asdict(manifests.describe_file(baselines / "symmetric.onnx")),
        "query_head_control": asdict(manifests.describe_file(baselines / "query_head_control.onnx")),
    }
    (baselines / "baselines.json").write_text(json.dumps({"format": 1, "files": files}, indent=2) + "\n")


def write_edge(
    trained: Trained, student: nn.Module, folder: Path, pixels: NDArray[np.uint8], sentence: parity.Floats, *, name: str
) -> manifests.EdgeManifest:
    """The device's half of `student`, one that reads pictures for the text tower of `trained`.

    sentence: what torch gives for `pixels`; the first rows become the golden vectors."""
    recipe = trained.recipe
    picture = PictureSpec(side=recipe.side, fit="crop")
    space = token_space(trained)
    encoder = mint(
        "encoder",
        {"student": digest_arrays(weights(student)), "picture": _as_text(picture), "token space": space},
    )
    graph, golden = folder / "encoder.fp32.onnx", folder / "golden.npz"
    write_pixels_graph(student, graph, side=recipe.side, outputs=["sentence"])
    np.savez_compressed(golden, pixels=pixels[:GOLDEN_ROWS], sentence=sentence[:GOLDEN_ROWS])
    token_norm = float(np.linalg.norm(sentence[:GOLDEN_ROWS], axis=-1).mean())
    manifest = manifests.EdgeManifest(
        name=name, token_space=space, encoder=encoder, token_count=sentence.shape[1],
        token_width=sentence.shape[2], picture=picture, graphs={"fp32": manifests.describe_file(graph)},
        golden=manifests.describe_file(golden), golden_tolerance=parity.ELSEWHERE * token_norm,
    )  # fmt: skip
    manifests.write(manifest, folder)
    return manifest


def token_space(trained: Trained) -> str:
    """The id of what sentence tokens mean to the text tower of `trained`."""
    return mint(
        "token-space",
        {
            "text tower": digest_arrays(weights(trained.teacher.text)),
            "tokenizer": hashlib.sha256(trained.tokenizer_file.read_bytes()).hexdigest(),
            "prompts": json.dumps(asdict(PROMPTS), sort_keys=True),
            "slots": SLOT_LAYOUT,
        },
    )


def _as_text(picture: PictureSpec) -> str:
    return json.dumps(asdict(picture), sort_keys=True)


def _write_golden(folder: Path, given: parity.Material, expected: parity.Originals) -> None:
    """Vectors of the torch originals, so that `doctor` compares a machine with the training and not with itself."""
    n = slice(GOLDEN_ROWS)
    np.savez_compressed(
        folder / "cloud" / "golden.npz",
        sentence=expected.sentence[n], words=np.array(given.words[n]), composed=expected.composed[n],
        picture=expected.picture[n], words_feature=expected.words[n], query=expected.query[n],
        pixels=given.pixels[n], image_raw=expected.image_raw[n], image=expected.image[n], union=expected.union[n],
    )  # fmt: skip


def weights(module: nn.Module) -> dict[str, NDArray[np.generic]]:
    """The tensors of `module` as arrays, for hashing."""
    return {key: tensor.numpy() for key, tensor in module.state_dict().items()}


def _write_cloud(
    trained: Trained, edge: manifests.EdgeManifest, folder: Path, name: str, accept: list[str]
) -> dict[str, str]:
    recipe, cloud = trained.recipe, folder / "cloud"
    gallery_space = mint(
        "gallery-space",
        {
            "image tower": digest_arrays(weights(trained.teacher.image)),
            "picture": _as_text(edge.picture),
            "original": "raw feature / length",
            "union": digest_arrays(weights(trained.heads.target)),
        },
    )
    manifests.write(
        manifests.CloudManifest(
            name=name, token_space=edge.token_space, gallery_space=gallery_space, encoders=[edge.encoder, *accept],
            token_width=recipe.word_width, max_tokens=recipe.most_tokens, context=recipe.context, dim=recipe.dim,
            picture=edge.picture, prompts=PROMPTS, text=LAYOUT, targets=["original", "union"],
            text_tower=manifests.describe_file(cloud / "text_tower.onnx"),
            image_tower=manifests.describe_file(cloud / "image_tower.onnx"),
            query_head=manifests.describe_file(cloud / "query_head.onnx"),
            target_head=manifests.describe_file(cloud / "target_head.onnx"),
            tokenizer=manifests.describe_file(cloud / "tokenizer.json"),
            golden=manifests.describe_file(cloud / "golden.npz"), golden_tolerance=parity.ELSEWHERE,
        ),
        cloud,
    )  # fmt: skip
    return {"token_space": edge.token_space, "gallery_space": gallery_space, "encoder": edge.encoder}


def _report(trained: Trained, folder: Path) -> dict[str, object]:
    side = trained.recipe.side
    towers = {"student": trained.student, "teacher_image_tower": trained.teacher.image}
    pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    logs = trained.folder.glob("*.log.jsonl")
    return {
        "recipe": asdict(trained.recipe),
        "cost": {
            key: {"parameters": parameters(module), "multiply_adds": multiply_adds(module, pixels)}
            for key, module in towers.items()
        }
        | {"teacher_text_tower": {"parameters": parameters(trained.teacher.text)}},
        "lessons": {path.name.removesuffix(".log.jsonl"): last_record(path) for path in sorted(logs)},
        "bytes": {str(path.relative_to(folder)): path.stat().st_size for path in files},
        **made_with(),
    }


def made_with() -> dict[str, object]:
    """What a report says of the tools and the machine."""
    return {
        "opset": OPSET,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__, "numpy": np.__version__,
        },
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }  # fmt: skip


def last_record(log: Path) -> dict[str, float]:
    return json.loads(log.read_text().splitlines()[-1])
