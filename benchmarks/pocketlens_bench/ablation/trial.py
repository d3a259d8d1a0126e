"""One cell with one seed: train it, let it answer, keep its figures. A process of its own; killed, it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pocketlens_training.baselines import learn_phi, learn_symmetric
from pocketlens_training.compositions import make_composition, product_scores, superglobal_rerank, weicom_scores
from pocketlens_training.distil import learn
from pocketlens_training.loop import machine, read_log, under
from pocketlens_training.material import Material, Sources, gather
from pocketlens_training.places import teacher_places
from pocketlens_training.reading import reader_of
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.students.student import Student, make_student
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.teacher import Teacher
from pocketlens_training.tuning import (
    HeadRecipe,
    TripletFeatures,
    content_of_triplets,
    make_heads,
    needs_states,
    query_features,
    run_composition,
)
from pocketlens_training.tuning import (
    learn as learn_heads,
)
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketlens_bench.ablation.cells import CELLS, Cell
from pocketlens_bench.ablation.exam import Paper, papers
from pocketlens_bench.questions import METRICS

CHUNK = 250
WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PDV_ALPHAS = (0.8, 0.9, 1.1, 1.2, 1.4)
PHOTO_PAPERS = ("validation", "composed")
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What all trials of one ablation share. run: a sample run's folder with its set and teacher."""

    run: Path
    work: Path
    base: Mapping[str, Any]
    head_steps: int
    threads: int


def folder_of(trials: Trials, cell: Cell, seed: int) -> Path:
    """A cell that is changed, or another recipe's defaults, gets a folder of its own."""
    recipe = DistilRecipe(**{**trials.base, **(cell.change if cell.kind == "student" else {})})
    asked = json.dumps([asdict(recipe), dict(cell.change), trials.head_steps], sort_keys=True)
    return trials.work / f"{cell.key}-{sha256(asked.encode()).hexdigest()[:6]}-s{seed}"


def attempt(trials: Trials, cell: Cell, seed: int) -> dict[str, Any]:
    """The figures of `cell` with `seed`, by row name; read if they are there."""
    folder = folder_of(trials, cell, seed)
    kept = folder / "figures.json"
    if kept.exists():
        return json.loads(kept.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(trials.threads)
    found = _Trial(trials, cell, seed, folder).go()
    partial = kept.with_suffix(".part")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(kept)
    (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    return found


def prepare(trials: Trials, threads: int) -> None:
    """What all trials share, computed once: the exam, the teacher's vectors and maps, the nearest captions."""
    torch.set_num_threads(threads)
    first = _Trial(trials, CELLS[0], 1, trials.work)
    material = first._material(first.recipe)
    teacher_places(
        material.teacher, material.photos, material.numbers, material.content, material.cache,
        where=first.where, progress=first.progress,
    )  # fmt: skip


class _Trial:
    def __init__(self, trials: Trials, cell: Cell, seed: int, folder: Path) -> None:
        self.trials, self.cell, self.seed, self.folder = trials, cell, seed, folder
        self.where = machine()
        self.progress = Progress(console=Console(quiet=True), disable=True)  # stdout is for the result
        self.teacher: Teacher = load_teacher(f"run:{trials.run / 'teacher'}")
        for module in (self.teacher.image, self.teacher.text):
            module.to(self.where.device)
        self.reader = reader_of(self.teacher, self.where, exact=True)  # rounding to bfloat16 changes who is first
        self.papers = papers(self.teacher, self.where.device, trials.work / "exam")
        change = cell.change if cell.kind == "student" else {}
        self.recipe = DistilRecipe(**{**trials.base, **change, "seed": seed})

    def go(self) -> dict[str, Any]:
        rows = {"student": self.student, "symmetric": self.symmetric, "phi": self.phi, "heads": self.heads,
                "free": self.free}[self.cell.kind]()  # fmt: skip
        logs = {log.stem: read_log(log)[-1] for log in sorted(self.folder.glob("*.csv"))}
        return {"cell": self.cell.key, "seed": self.seed, "rows": rows, "last": logs}

    # --- kinds

    def student(self) -> Figures:
        student = self._fresh(self.recipe)
        learn(student, self._material(self.recipe), self.recipe, self.folder, where=self.where, progress=self.progress)
        return {self.cell.name: self._asked(lambda paper: self._sentences(student, paper.pixels), tuple(self.papers))}

    def symmetric(self) -> Figures:
        material = self._material(self.recipe)
        module = learn_symmetric(material, self.recipe, self.folder, where=self.where, progress=self.progress)
        return {self.cell.name: self._asked(lambda paper: self._large(module, paper.pixels, places=True), PHOTO_PAPERS)}

    def phi(self) -> Figures:
        material = self._material(self.recipe)
        module = learn_phi(
            self.cell.change["phi"], material, self.recipe, self.folder, where=self.where, progress=self.progress
        )
        return {self.cell.name: self._asked(lambda paper: self._large(module, paper.pixels), PHOTO_PAPERS)}

    def heads(self) -> Figures:
        student = self.base_student()
        recipe = HeadRecipe(seed=self.seed, steps=self.trials.head_steps, **self.cell.change)
        triplets = self.trials.run / "set" / "triplets.jsonl"
        shared = folder_of(self.trials, CELLS[0], self.seed)
        features = TripletFeatures.of(
            student, self.teacher, triplets, content_of_triplets(triplets), shared, recipe, self.reader, self.where,
            self.progress, 0,
        )  # fmt: skip
        torch.manual_seed(self.seed)
        heads = make_heads(recipe, features.empty_raw)
        learn_heads(heads, features, self.teacher, recipe, "heads", self.folder, self.where, self.progress)
        heads.cpu().eval()
        figures: dict[str, float] = {}
        with torch.no_grad():
            for key in PHOTO_PAPERS:
                paper = self.papers[key]
                sentences = self._sentences(student, paper.pixels)
                queries = [
                    run_composition(heads.query, {
                        name: value.cpu() for name, value in query_features(
                            self.reader, sentences[i : i + CHUNK], list(paper.questions.words[i : i + CHUNK]),
                            states=needs_states(recipe.composition),
                        ).items()
                    })
                    for i in range(0, len(sentences), CHUNK)
                ]  # fmt: skip
                target = heads.target(torch.from_numpy(paper.questions.gallery["original"]))
                figures |= _judged(key, paper, torch.cat(queries).numpy(), target.numpy())
        return {self.cell.name: figures}

    def free(self) -> Figures:
        """What needs no training, upon the base student of this seed; each number is chosen on the validation set."""
        student = self.base_student()
        parts = {key: self._parts(student, self.papers[key]) for key in PHOTO_PAPERS}
        rows: Figures = {}

        def row(name: str, queries: Mapping[str, NDArray[np.float32]]) -> None:
            rows[name] = {}
            for key in PHOTO_PAPERS:
                rows[name] |= _judged(key, self.papers[key], queries[key])

        row("words only", {key: parts[key]["words"] for key in PHOTO_PAPERS})
        row("sentence only", {key: parts[key]["picture"] for key in PHOTO_PAPERS})
        row("picture only", {key: parts[key]["image"] for key in PHOTO_PAPERS})
        row("random tokens", {key: parts[key]["random"] for key in PHOTO_PAPERS})
        self._best(
            rows, "sum", parts, [(f"sum:{w}", lambda p, w=w: _unit(p["image"] + w * p["words"])) for w in WEIGHTS]
        )
        for name, first, numbers in (
            ("pdv", "composed", PDV_ALPHAS),
            ("slerp", "image", ALPHAS),
            ("slerp, sentence", "picture", ALPHAS),
        ):
            tried = [(f"{name}:{a}", self._composition(name.split(",")[0], a, first)) for a in numbers]
            self._best(rows, name, parts, tried)
        for name in ("product", "product, sentence", "weicom", "superglobal rerank"):
            rows[name] = {}
            for key in PHOTO_PAPERS:
                rows[name] |= self._scored(name, key, parts[key])
        return rows

    # --- parts

    def base_student(self) -> Student:
        """The base student of this seed. Raises FileNotFoundError before it is trained."""
        path = folder_of(self.trials, CELLS[0], self.seed) / "student.safetensors"
        if not path.exists():
            raise FileNotFoundError(f"{path}: the base student of seed {self.seed} comes first")
        recipe = DistilRecipe(**{**self.trials.base, "seed": self.seed})
        student = self._fresh(recipe)
        student.load_state_dict(under("student.", load_file(path)))
        return student.to(self.where.device).eval()

    def _fresh(self, recipe: DistilRecipe) -> Student:
        torch.manual_seed(recipe.seed)
        return make_student(
            recipe.student, self.teacher, tokens=recipe.tokens, side=recipe.side, anchors=recipe.anchors
        )

    def _material(self, recipe: DistilRecipe) -> Material:
        world = self.trials.run / "set"
        sources = Sources(
            images=world / "pairs.jsonl", told=world / "told.jsonl", sketches=world / "sketches.jsonl", questions=None
        )
        return gather(
            self.teacher, sources, recipe, where=self.where, progress=self.progress, workers=0,
            cache=self.trials.run / "teacher",
        )  # fmt: skip

    @torch.no_grad()
    def _sentences(self, student: nn.Module, pixels: NDArray[np.uint8]) -> Tensor:
        student.to(self.where.device).eval()
        parts = torch.from_numpy(pixels).split(CHUNK)
        return torch.cat([student(part.to(self.where.device)).float() for part in parts])

    @torch.no_grad()
    def _large(self, module: nn.Module, pixels: NDArray[np.uint8], *, places: bool = False) -> Tensor:
        """Sentences of what reads the large tower."""
        parts = []
        for part in torch.from_numpy(pixels).split(CHUNK):
            raw, seen = self.teacher.image(part.to(self.where.device))
            parts.append(module(seen if places else raw).float())
        return torch.cat(parts)

    @torch.no_grad()
    def _asked(self, sentences_of: Any, keys: tuple[str, ...]) -> dict[str, float]:
        figures: dict[str, float] = {}
        for key in keys:
            paper = self.papers[key]
            sentences, words = sentences_of(paper), paper.questions.words
            vectors = [
                self.reader.unit([self.reader.composed(w) for w in words[i : i + CHUNK]], sentences[i : i + CHUNK])
                for i in range(0, len(words), CHUNK)
            ]
            figures |= _judged(key, paper, torch.cat(vectors).cpu().numpy())
        return figures

    @torch.no_grad()
    def _parts(self, student: Student, paper: Paper) -> dict[str, NDArray[np.float32]]:
        sentences, words = self._sentences(student, paper.pixels), list(paper.questions.words)
        norm = sentences.norm(dim=2).mean()
        generator = torch.Generator().manual_seed(self.seed)
        noise = F.normalize(torch.randn(sentences.shape, generator=generator), dim=2).to(sentences.device) * norm
        found: dict[str, list[Tensor]] = {name: [] for name in ("composed", "picture", "words", "random", "image")}
        for i in range(0, len(words), CHUNK):
            n = slice(i, i + CHUNK)
            features = query_features(self.reader, sentences[n], words[n])
            for name, value in features.items():
                found[name].append(value.cpu())
            composed = [self.reader.composed(each) for each in words[n]]
            found["random"].append(self.reader.unit(composed, noise[n]).cpu())
            raw = self.teacher.image(torch.from_numpy(paper.pixels[n]).to(self.where.device))[0].float().cpu()
            found["image"].append(F.normalize(raw, dim=1))
        return {name: torch.cat(values).numpy() for name, values in found.items()}

    def _composition(self, name: str, number: float, picture: str) -> Any:
        composition = make_composition(f"{name}:{number}", self.teacher.dim)

        def queries(parts: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
            said = "picture" if name == "pdv" else picture
            with torch.no_grad():
                return composition(
                    torch.from_numpy(parts["composed"]), torch.from_numpy(parts[said]), torch.from_numpy(parts["words"])
                ).numpy()

        return queries

    def _best(self, rows: Figures, name: str, parts: Mapping[str, Any], tried: list[tuple[str, Any]]) -> None:
        """The best of `tried` on the validation set, under the name that says which it was."""
        scored = {
            label: _judged("validation", self.papers["validation"], made(parts["validation"])) for label, made in tried
        }
        best = max(scored, key=lambda label: (scored[label]["validation R@10"], scored[label]["validation mAP@10"]))
        made = dict(tried)[best]
        rows[name] = scored[best] | _judged("composed", self.papers["composed"], made(parts["composed"]))
        rows[name]["number"] = float(best.rpartition(":")[2])

    def _scored(self, name: str, key: str, parts: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        paper = self.papers[key]
        gallery = torch.from_numpy(_unit(paper.questions.gallery["original"]))
        first = torch.from_numpy(parts["picture" if "sentence" in name else "image"]) @ gallery.T
        second = torch.from_numpy(parts["words"]) @ gallery.T
        if name.startswith("product"):
            scores = product_scores(first, second)
        elif name == "weicom":
            scores = weicom_scores(first, second)
        else:
            scores = superglobal_rerank(torch.from_numpy(parts["composed"]), gallery)
        return _judged_scores(key, paper, scores.numpy())


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _judged(
    key: str, paper: Paper, queries: NDArray[np.float32], gallery: NDArray[np.float32] | None = None
) -> dict[str, float]:
    """Means in percent of each metric, for queries searched in `gallery`, by default the pictures as they are."""
    vectors = _unit(paper.questions.gallery["original"]) if gallery is None else gallery
    return _judged_scores(key, paper, queries @ vectors.T)


def _judged_scores(key: str, paper: Paper, scores: NDArray[Any]) -> dict[str, float]:
    judged = paper.questions.judged_scores(scores)
    return {f"{key} {metric}": float(judged[metric].mean()) for metric in METRICS}
