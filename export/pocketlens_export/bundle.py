"""A finished training to a bundle: write, mint, check, and only then put in place.

Owns the bundle's layout, the two ids and the report. Nothing is left behind under the asked name when a check
fails: the bundle is built beside it and renamed at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pocketlens_training.checkpoint import Trained, load_run
from pocketlens_training.cost import multiply_adds, parameters
from pocketlens_training.loop import read_log
from pocketlens_training.material import open_images
from pocketlens_training.run import read_run, sources_of
from pocketlens_training.sets.lines import BadLines, read_sketches
from pocketlens_training.sets.sources import Files, NoPictures
from pocketlens_training.students.student import MOST_TOKENS, Student, student_picture
from pocketlens_training.teachers.teacher import Teacher
from pocketlens_training.tuning import needs_states
from pocketlens_wire import manifest as manifests
from pocketlens_wire.spaces import digest_arrays, mint
from tokenizers import Tokenizer
from torch import nn

from pocketlens_export import parity
from pocketlens_export.forms import grow
from pocketlens_export.gate import Both, composed, needed
from pocketlens_export.graphs import (
    RawAndUnitImage,
    write_pixels_graph,
    write_rows_graph,
    write_text_tower,
)
from pocketlens_export.quantize import OnDone

SLOT_LAYOUT = "v2: begin prompt-before sentence prompt-after end; sentence by position"
GOLDEN_ROWS = 8
PARITY_ROWS = 64
LESSONS = ("pairs", "edits", "student", "heads", "heads-control", "symmetric")
MOST_BYTES = 1_900_000_000  # of one graph: a protobuf holds 2 GB


def export_bundle(
    run: Path, out: Path, *, name: str, accept: list[str] | None = None, exact_only: bool = False,
    on_done: OnDone = lambda *_: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the bundle of training `run` to `out` and return its report.

    name: shown to people. accept: further encoder ids the cloud half takes (other students of the same token
    space). exact_only: no further forms than fp32; else they are made from the run's own pictures, and the report's
    `forms` says what was measured, or why there are none. Raises FileNotFoundError for an unfinished run,
    FileExistsError when `out` exists, ValueError for what no bundle can hold, parity.NotEqual when a graph differs from
    its torch original."""
    with put_in_place(out) as building:
        report = _build(load_run(run), building, name, accept or [])
        if not exact_only:
            report["forms"] = _grown(run, building, on_done)
            (building / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        return report


def _grown(run: Path, building: Path, on_done: OnDone) -> dict[str, Any]:
    """What parity.json says of the further forms; `no_forms` where the run's pictures are no longer there."""
    sources = sources_of(run)
    try:
        pictures, _ = open_images(sources.images)
        if sources.sketches is not None:
            drawn = [sketch for sketch, _ in read_sketches(sources.sketches)]
            pictures = Both(pictures, Files(sources.sketches.parent, drawn))
        asked = None if sources.questions is None else composed(sources.questions)
        if asked is not None and len(asked.words) < needed():
            asked = None
        return grow(building, pictures, asked, on_done=on_done, must=False)
    except (NoPictures, BadLines, OSError) as gone:
        return {"no_forms": str(gone)}


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


def _build(trained: Trained, folder: Path, name: str, accept: list[str]) -> dict[str, Any]:
    _refuse_what_cannot_be_served(trained)
    for half in ("edge", "cloud"):
        (folder / half).mkdir()
    _write_graphs(trained, folder)
    given = parity.material(PARITY_ROWS, trained.recipe.seed, trained.picture, trained.teacher.picture)
    expected = parity.originals(trained, given)
    edge = write_edge(trained, trained.student, folder / "edge", given.pixels, expected.sentence, name=name)
    _write_golden(folder, given, expected)
    ids = _write_cloud(trained, edge, folder, name, accept)
    checks = parity.check_bundle(folder, given, expected)
    report = {"name": name, **ids, **_report(trained, folder), "parity": parity.as_report(checks)}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _refuse_what_cannot_be_served(trained: Trained) -> None:
    """Raises ValueError, saying what can be."""
    if trained.head_recipe and needs_states(trained.head_recipe.composition):
        raise ValueError(
            f"{trained.folder}: the service does not compose by {trained.head_recipe.composition}, which reads states "
            "of every token; it is for comparison. Train heads with --composition gated, or another"
        )
    for what, module in (("image tower", trained.teacher.image), ("text tower", trained.teacher.text)):
        size = 4 * parameters(module)
        if size > MOST_BYTES:
            raise ValueError(
                f"{trained.teacher.name}: its {what} has {size / 1e9:.1f} GB in float32; a graph of one file holds "
                f"{MOST_BYTES / 1e9:.1f} GB. Choose a smaller teacher"
            )


def _write_graphs(trained: Trained, folder: Path) -> None:
    cloud, teacher = folder / "cloud", trained.teacher
    write_text_tower(
        teacher.text, cloud / "text_tower.onnx", width=teacher.word_width, context=teacher.context,
        fixed_length=teacher.layout.fixed_length,
    )  # fmt: skip
    write_pixels_graph(
        RawAndUnitImage(teacher.image), cloud / "image_tower.onnx", side=teacher.picture.side,
        outputs=["image_raw", "image", "places"],
    )  # fmt: skip
    bare(teacher.tokenizer).save(str(cloud / "tokenizer.json"))
    if trained.heads is not None:
        write_rows_graph(trained.heads.query, cloud / "query_head.onnx", **_query(trained))
    if _makes_union(trained):
        assert trained.heads is not None
        write_rows_graph(
            trained.heads.target, cloud / "target_head.onnx", inputs=["image_raw"], shape=(teacher.dim,), output="union"
        )
    _write_baselines(trained, folder / "baselines")


def _query(trained: Trained) -> dict[str, Any]:
    return {"inputs": ["composed", "picture", "words"], "shape": (trained.teacher.dim,), "output": "query"}


def _makes_union(trained: Trained) -> bool:
    """Whether gallery pictures get a second vector."""
    return trained.head_recipe is not None and trained.head_recipe.target != "original"


def _write_baselines(trained: Trained, folder: Path) -> None:
    """What the bundle is compared with, if all of it was trained."""
    if trained.control is None or trained.symmetric is None:
        return
    folder.mkdir()
    write_rows_graph(trained.control.query, folder / "query_head_control.onnx", **_query(trained))
    with torch.no_grad():
        side = trained.teacher.picture.side
        places = tuple(trained.teacher.image(torch.zeros(1, side, side, 3, dtype=torch.uint8))[1].shape[1:])
    write_rows_graph(trained.symmetric, folder / "symmetric.onnx", inputs=["places"], shape=places, output="sentence")
    files = {
        "symmetric": asdict(manifests.describe_file(folder / "symmetric.onnx")),
        "query_head_control": asdict(manifests.describe_file(folder / "query_head_control.onnx")),
    }
    (folder / "baselines.json").write_text(json.dumps({"format": 1, "files": files}, indent=2) + "\n")


def write_edge(
    trained: Trained, student: Student, folder: Path, pixels: NDArray[np.uint8], sentence: parity.Floats, *, name: str
) -> manifests.EdgeManifest:
    """The device's half of `student`, one that reads pictures for the text tower of `trained`.

    sentence: what torch gives for `pixels`; the first rows become the golden vectors."""
    picture = student_picture(student, trained.teacher)
    space, encoder = token_space(trained.teacher), encoder_id(student, trained.teacher)
    graph, golden = folder / "encoder.fp32.onnx", folder / "golden.npz"
    write_pixels_graph(student, graph, side=picture.side, outputs=["sentence"])
    np.savez_compressed(golden, pixels=pixels[:GOLDEN_ROWS], sentence=sentence[:GOLDEN_ROWS])
    token_norm = float(np.linalg.norm(sentence[:GOLDEN_ROWS], axis=-1).mean())
    manifest = manifests.EdgeManifest(
        name=name, token_space=space, token_count=sentence.shape[1], token_width=sentence.shape[2], picture=picture,
        graphs={"fp32": manifests.describe_encoder(graph, encoder=encoder, tolerance=parity.ELSEWHERE * token_norm)},
        golden=manifests.describe_file(golden), report=None, page=None,
    )  # fmt: skip
    manifests.write(manifest, folder)
    return manifest


def token_space(teacher: Teacher) -> str:
    """The id of what sentence tokens mean to the text tower of `teacher`."""
    return mint(
        "token-space",
        {
            "text tower": digest_arrays(weights(teacher.text)),
            "signature": teacher.signature,
            "tokenizer": hashlib.sha256(bare(teacher.tokenizer).to_str().encode()).hexdigest(),
            "prompts": _as_text(teacher.prompts),
            "layout": _as_text(teacher.layout),
            "slots": SLOT_LAYOUT,
        },
    )


def encoder_id(student: Student, teacher: Teacher) -> str:
    """The id of a student in float32: what it computes, of which pixels, for which token space."""
    return mint(
        "encoder",
        {
            "student": digest_arrays(everything(student)),
            "picture": _as_text(student_picture(student, teacher)),
            "token space": token_space(teacher),
        },
    )


def gallery_space(teacher: Teacher, union: nn.Module | None) -> str:
    """The id of where gallery vectors lie. union: the target head, if pictures get a second vector."""
    meaning = {
        "image tower": digest_arrays(weights(teacher.image)),
        "signature": teacher.signature,
        "picture": _as_text(teacher.picture),
        "original": "raw feature / length",
    }
    if union is not None:
        meaning["union"] = digest_arrays(everything(union))
    return mint("gallery-space", meaning)


def bare(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer` itself, told neither to pad nor to cut: the text tower's rows are made elsewhere."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _as_text(record: Any) -> str:
    return json.dumps(asdict(record), sort_keys=True)


def _write_golden(folder: Path, given: parity.Material, expected: parity.Originals) -> None:
    """Vectors of the torch originals, so that `doctor` compares a machine with the training and not with itself."""
    n = slice(GOLDEN_ROWS)
    held = {
        "sentence": expected.sentence, "words": np.array(given.words), "composed": expected.composed,
        "picture": expected.picture, "words_feature": expected.words, "query": expected.query, "pixels": given.large,
        "image_raw": expected.image_raw, "image": expected.image, "union": expected.union,
    }  # fmt: skip
    arrays = {name: array[n] for name, array in held.items() if array is not None}
    np.savez_compressed(folder / "cloud" / "golden.npz", **arrays)  # type: ignore[arg-type]


def weights(module: nn.Module) -> dict[str, NDArray[np.generic]]:
    """The tensors of `module` as arrays, for hashing."""
    return {key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}


def everything(module: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Its weights, and what it computes with though its checkpoint leaves it out: the mean of a backbone's pixels, the
    weight of a sum. (A teacher's are in its signature.)"""
    held = weights(module)
    return held | {name: buffer.cpu().numpy() for name, buffer in module.named_buffers() if name not in held}


def _write_cloud(
    trained: Trained, edge: manifests.EdgeManifest, folder: Path, name: str, accept: list[str]
) -> dict[str, str]:
    teacher, cloud = trained.teacher, folder / "cloud"
    union = _makes_union(trained)
    space = gallery_space(teacher, trained.heads.target if union and trained.heads else None)

    def described(file: str) -> manifests.File:
        return manifests.describe_file(cloud / file)

    def towers(file: str) -> dict[str, manifests.TowerGraph]:
        return {"fp32": manifests.describe_tower(cloud / file, tolerance=parity.ELSEWHERE)}

    manifests.write(
        manifests.CloudManifest(
            name=name, token_space=edge.token_space, gallery_space=space,
            encoders=[edge.graph().encoder, *accept],
            token_width=teacher.word_width, max_tokens=MOST_TOKENS, context=teacher.context, dim=teacher.dim,
            picture=teacher.picture, prompts=teacher.prompts, text=teacher.layout,
            targets=["original", "union"] if union else ["original"], text_tower=towers("text_tower.onnx"),
            image_tower=towers("image_tower.onnx"),
            query_head=described("query_head.onnx") if trained.heads else None,
            target_head=described("target_head.onnx") if union else None, tokenizer=described("tokenizer.json"),
            golden=described("golden.npz"),
        ),
        cloud,
    )  # fmt: skip
    return {"token_space": edge.token_space, "gallery_space": space, "encoder": edge.graph().encoder}


def _report(trained: Trained, folder: Path) -> dict[str, object]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    logs = sorted({*trained.folder.glob("*.csv"), *(trained.folder / "teacher").glob("*.csv")})
    lessons = {path.stem: last_record(path) for path in logs if path.stem in LESSONS}
    return {
        "run": {key: value for key, value in read_run(trained.folder).items() if key != "sources"},
        "heads": asdict(trained.head_recipe) if trained.head_recipe else None,
        "cost": {
            "student": cost_of(trained.student, trained.picture.side),
            "teacher_image_tower": cost_of(trained.teacher.image, trained.teacher.picture.side),
            "teacher_text_tower": {"parameters": parameters(trained.teacher.text)},
        },
        "lessons": lessons,
        "bytes": {str(path.relative_to(folder)): path.stat().st_size for path in files},
        **parity.made_with(),
    }


def cost_of(module: nn.Module, side: int) -> dict[str, int]:
    """Parameters, and multiply-adds of one picture."""
    pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    return {"parameters": parameters(module), "multiply_adds": multiply_adds(module, pixels)}


def last_record(log: Path) -> dict[str, float]:
    return read_log(log)[-1]
