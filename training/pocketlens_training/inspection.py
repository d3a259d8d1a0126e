"""What a finished student looks at, which words its tokens are near, what its sentences find, how its lessons went.

Owns what is computed; inspection_sheets.py and inspection_page.py draw it. Pictures are found as the untuned mode finds
them, by sentence and words alone. A run whose pictures lie elsewhere now is inspected as far as it can be, and `notes`
says what is left out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec
from rich.progress import Progress
from torch import Tensor

from pocketlens_training.checkpoint import SIBLINGS, Trained, load_run
from pocketlens_training.features import teacher_vectors
from pocketlens_training.loop import read_log
from pocketlens_training.material import Material, absolute, gather, with_bar
from pocketlens_training.nearest_words import Vocabulary, Word
from pocketlens_training.places import grid_of
from pocketlens_training.probe import sentences_of
from pocketlens_training.reading import reader_of
from pocketlens_training.run import cache_of, read_run, sources_of
from pocketlens_training.sets.lines import BadLines, Triplet, read_triplets
from pocketlens_training.sets.pixels import Pixels, square
from pocketlens_training.sets.sources import Files, NoPictures, Source
from pocketlens_training.students.student import Student, median_norm

HITS = 6  # pictures of a row
THUMBNAIL = 224  # pixels a side of a picture that was found: twice what the page shows it at
AT_ONCE = 16  # pictures in one pass
FIRST_LESSONS = ("pairs", "edits", "student", "heads", "heads-control", "symmetric")  # in the order they are given


# --- what is found out


@dataclass(frozen=True)
class Token:
    """One token of a sentence. attention: (rows, columns) of the student's map, its weights sum to 1."""

    attention: NDArray[np.float32]
    norm: float
    words: Sequence[Word]

    @property
    def peak(self) -> float:
        """The weight of its strongest place, in even shares: 1 looks everywhere alike."""
        return float(self.attention.max() * self.attention.size)

    @property
    def half(self) -> float:
        """The smallest share of the picture that holds half of its weight."""
        held = np.sort(self.attention.ravel())[::-1].cumsum()
        return float((np.searchsorted(held, (0.5 - 1e-6) * held[-1]) + 1) / held.size)


@dataclass(frozen=True)
class Hit:
    """One picture that was found. right: as a questions file says, None where nobody knows; itself: it is the picture
    asked with."""

    name: str
    score: float
    pixels: Pixels | None
    right: bool | None
    itself: bool


@dataclass(frozen=True)
class Row:
    """What a sentence finds, best first, with `words` or alone. own_rank, right_rank: from 1, of the picture asked with
    and of the first right one; None where there is none. among: pictures searched."""

    words: str
    hits: Sequence[Hit]
    among: int
    own_rank: int | None
    right_rank: int | None


@dataclass(frozen=True)
class Seen:
    """One picture as the device sees it, its tokens, and what its sentence finds. kind: held-out, learned or given."""

    name: str
    kind: str
    pixels: Pixels
    tokens: Sequence[Token]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Question:
    """A composed query of the run's own questions, and what it finds."""

    name: str
    pixels: Pixels
    row: Row


@dataclass(frozen=True)
class Lesson:
    """A lesson's log: of each figure its (step, value)."""

    title: str
    file: str
    figures: Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Inspection:
    """All of it. facts: what the run is, for people. notes: what is left out, and why."""

    run: str
    facts: Mapping[str, str | int | float]
    pictures: Sequence[Seen]
    questions: Sequence[Question]
    lessons: Sequence[Lesson]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """All numbers, no pixels."""
        return {
            "format": 1, "run": self.run, "facts": dict(self.facts), "notes": list(self.notes),
            "pictures": [
                {
                    "name": seen.name, "kind": seen.kind, "side": len(seen.pixels),
                    "tokens": [_token_json(token) for token in seen.tokens],
                    "rows": [_row_json(row) for row in seen.rows],
                }
                for seen in self.pictures
            ],
            "questions": [{"reference": one.name, **_row_json(one.row)} for one in self.questions],
            "lessons": [
                {"title": lesson.title, "file": lesson.file, "figures": dict(lesson.figures)} for lesson in self.lessons
            ],
        }  # fmt: skip


def _token_json(token: Token) -> dict[str, Any]:
    return {
        "norm": round(token.norm, 5), "peak": round(token.peak, 4), "half": round(token.half, 4),
        "words": [{"word": word.text, "id": word.id, "cosine": round(word.cosine, 5)} for word in token.words],
        "attention": [[round(float(value), 6) for value in row] for row in token.attention],
    }  # fmt: skip


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "words": row.words, "among": row.among, "own_rank": row.own_rank, "right_rank": row.right_rank,
        "hits": [
            {"name": hit.name, "score": round(hit.score, 5), "right": hit.right, "itself": hit.itself}
            for hit in row.hits
        ],
    }  # fmt: skip


# --- the whole


def inspect_run(
    run: Path, *, count: int = 8, files: Sequence[Path] = (), words: str | None = None,
    where: Accelerator, progress: Progress,
) -> Inspection:  # fmt: skip
    """Look at `count` held-out pictures of the run, or at `files`, with `words` if given.

    Raises FileNotFoundError for no run or an unfinished one, BadPicture for a file that cannot be read, ValueError for
    empty words."""
    if words is not None and not words.strip():
        raise ValueError('--words: there are none; say what shall change, for example --words "in red"')
    trained = load_run(run)
    given = [(str(file), "given", square(_bytes_of(file), trained.picture, name=str(file))) for file in files]
    return _Inspecting(run, trained, words, where, progress).go(given, count)


Chosen = tuple[str, str, Pixels]
"""Name, kind and pixels of a picture to look at."""


class _Inspecting:
    """One inspection under way."""

    def __init__(self, run: Path, trained: Trained, words: str | None, where: Accelerator, progress: Progress) -> None:
        self.run, self.trained, self.words, self.where, self.progress = run, trained, words, where, progress
        # The sample world's vectors lie with its teacher.
        self.cache = cache_of(run)
        self.teacher = trained.teacher
        for module in (self.teacher.image, self.teacher.text, trained.student):
            module.to(where.device).eval()
        self.reader = reader_of(self.teacher, where)
        self.notes: list[str] = []

    def go(self, given: Sequence[Chosen], count: int) -> Inspection:
        material = self._material()
        shelf = None if material is None else Shelf.of(material)
        chosen, rows = (given, [None] * len(given)) if given or material is None else self._chosen(material, count)
        if not chosen:
            self.notes.append("Attention and words: no picture to look at; name one with --picture FILE.")
        if chosen and self.trained.student.tokens == 1:
            self.notes.append("Tokens compete for places; a single token has no rival and looks everywhere alike.")
        if self.words and self.reader.maker.unknown(self.words):
            self.notes.append(f"The teacher's vocabulary lacks a word of “{self.words}”.")
        pictures = self._seen(chosen, rows, shelf)
        asked = [] if given or self.words or material is None or shelf is None else self._questions(shelf, count)
        lessons = lessons_of(self.run)
        if not lessons:
            self.notes.append("Curves: no lesson's log (CSV) lies in the run.")
        facts = self._facts(pictures, shelf)
        return Inspection(self.run.resolve().name, facts, pictures, asked, lessons, self.notes)

    def _material(self) -> Material | None:
        """The run's pictures and their teacher vectors, if the pictures are still there."""
        pictures = replace(sources_of(self.run), told=None, sketches=None, questions=None)
        try:
            material = gather(
                self.teacher, pictures, self.trained.recipe, where=self.where, progress=self.progress, workers=0,
                cache=self.cache,
            )  # fmt: skip
        except (NoPictures, BadLines, BadPicture, OSError) as gone:
            self.notes.append(f"Pictures found, and questions: the run's pictures cannot be read ({gone}).")
            return None
        if material.unreadable:
            self.notes.append(
                f"{len(material.unreadable):,} of the run's pictures cannot be read: they are not searched."
            )
        return material

    def _chosen(self, material: Material, count: int) -> tuple[list[Chosen], list[int | None]]:
        """`count` held-out pictures, spread over all, and their rows."""
        kind, rows = ("held-out", material.held) if len(material.held) else ("learned", material.kept)
        if kind == "learned":
            self.notes.append("No picture was held out of so few: those shown are pictures it has learned from.")
        chosen, found = [], []
        for row in rows[spread(len(rows), count)]:
            number = int(material.numbers[row])
            data, name = material.photos.read(number), material.photos.names[number]
            chosen.append((name, kind, square(data, self.trained.picture, name=name)))
            found.append(int(row))
        return chosen, found

    def _seen(self, chosen: Sequence[Chosen], rows: Sequence[int | None], shelf: Shelf | None) -> list[Seen]:
        if not chosen:
            return []
        pixels = [one for _, _, one in chosen]
        tokens, sentences = with_bar(self.progress, "attention", len(pixels), lambda tick: look_at(
            self.trained.student, pixels, Vocabulary(self.teacher), self.where, on_done=tick
        ))  # fmt: skip
        found: list[list[Row]] = [[] for _ in chosen]
        if shelf is not None:
            said = ["", *([self.words] if self.words else [])]
            bar = self.progress.add_task("rows", total=len(chosen) * len(said), note="")
            for i, own in enumerate(rows):
                for words in said:
                    query = self._query(sentences[i], words)
                    found[i].append(shelf.row(query, words, self.teacher.picture, own=own))
                    self.progress.advance(bar)
        return [Seen(*one, tokens[i], found[i]) for i, one in enumerate(chosen)]

    def _query(self, sentence: Tensor, words: str) -> Tensor:
        """Unit vector (dim,) of a sentence (k, width) with words, on the CPU."""
        with torch.no_grad():
            return self.reader.unit([self.reader.composed(words)], sentence[None].to(self.where.device))[0].cpu()

    def _questions(self, shelf: Shelf, count: int) -> list[Question]:
        """`count` of the run's own questions. Searched: the pictures that gallery.txt beside them lists, as for the
        log's recall; without that list the run's pictures and the right ones."""
        file = sources_of(self.run).questions
        if file is None:
            return []
        try:
            every = read_triplets(file)
            listed = file.parent / "gallery.txt"
            names = [] if not listed.is_file() else listed.read_text(encoding="utf-8").splitlines()
            searched = self._with_targets(None if names else shelf, file.parent, names, every)
            asked = [every[i] for i in spread(len(every), count)]
            references = Files(file.parent, [one.reference for one in asked])
            pixels = [
                square(references.read(i), self.trained.picture, name=one.reference) for i, one in enumerate(asked)
            ]
        except (NoPictures, BadLines, BadPicture, OSError) as gone:
            self.notes.append(f"Questions: their pictures or lines cannot be read ({gone}).")
            return []
        with torch.no_grad():
            sentences = sentences_of(self.trained.student, torch.from_numpy(np.stack(pixels)), self.where).cpu()
        place_of, whole = searched.place_of(), partial(absolute, file.parent)
        made = []
        bar = self.progress.add_task("questions", total=len(asked), note="")
        for i, one in enumerate(asked):
            right = {place_of[name] for name in map(whole, one.targets) if name in place_of}
            own = place_of.get(whole(one.reference))
            row = searched.row(
                self._query(sentences[i], one.text), one.text, self.teacher.picture, own=own, right=right
            )
            made.append(Question(one.reference, pixels[i], row))
            self.progress.advance(bar)
        return made

    def _with_targets(self, shelf: Shelf | None, root: Path, names: Sequence[str], asked: Sequence[Triplet]) -> Shelf:
        """`shelf`, and of the pictures `names` and all targets those that it lacks."""
        wanted = dict.fromkeys([*names, *(name for one in asked for name in one.targets)])
        known = {} if shelf is None else shelf.place_of()
        more = [name for name in wanted if absolute(root, name) not in known]
        if shelf is not None and not more:
            return shelf
        source = Files(root, more)
        seen = with_bar(self.progress, "gallery", len(more), lambda tick: teacher_vectors(
            self.teacher, source, self.cache / "features", device=self.where.device, on_done=tick,
        ))  # fmt: skip
        added = Shelf(F.normalize(seen.raw, dim=1), [(source, int(number)) for number in seen.numbers])
        return added if shelf is None else shelf.and_(added)

    def _facts(self, pictures: Sequence[Seen], shelf: Shelf | None) -> dict[str, str | int | float]:
        recipe, student = self.trained.recipe, self.trained.student
        facts: dict[str, str | int | float] = {
            "teacher": str(read_run(self.run)["teacher"]), "student": recipe.student, "tokens": student.tokens,
            "picture side": self.trained.picture.side, "fit": self.trained.picture.fit,
        }  # fmt: skip
        if pictures:
            rows, columns = pictures[0].tokens[0].attention.shape
            facts["map"] = f"{rows} x {columns}"
        facts["steps"] = recipe.steps
        if recipe.anchors:
            facts["anchored to words"] = recipe.anchors
        facts["median word norm"] = round(median_norm(self.teacher), 5)
        if shelf is not None:
            facts["pictures searched"] = len(shelf.places)
        return facts


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadPicture(f"{file}: cannot be read ({error.strerror or error}).") from error


def spread(count: int, wanted: int) -> NDArray[np.int64]:
    """At most `wanted` of 0 .. count - 1, spread evenly, none twice."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


# --- what is looked at


@torch.no_grad()
def look_at(
    student: Student, pictures: Sequence[Pixels], vocabulary: Vocabulary, where: Accelerator, *, on_done: Any = None
) -> tuple[list[list[Token]], Tensor]:
    """Of each picture its tokens; and the sentences float32 (pictures, k, width) on the CPU.

    Raises ValueError for a map that is not square."""
    tokens: list[list[Token]] = []
    sentences = []
    for start in range(0, len(pictures), AT_ONCE):
        pixels = torch.from_numpy(np.stack(pictures[start : start + AT_ONCE]))
        with where.autocast():
            reading = student.read(pixels.to(where.device))
        attention = reading.attention.float().cpu().numpy()
        grid = grid_of(attention.shape[2])
        for sentence, looks in zip(reading.sentence.float(), attention, strict=True):
            named = zip(sentence.norm(dim=1).tolist(), vocabulary.nearest(sentence), looks, strict=True)
            tokens.append([Token(look.reshape(grid), norm, words) for norm, words, look in named])
        sentences.append(reading.sentence.float().cpu())
        if on_done is not None:
            on_done(len(pixels))
    return tokens, torch.cat(sentences)


# --- what is found


@dataclass
class Shelf:
    """Pictures that can be found: unit vectors (n, dim) of the teacher, on the CPU, and where each picture lies."""

    vectors: Tensor
    places: Sequence[tuple[Source, int]]
    _thumbnails: dict[int, Pixels | None] = field(default_factory=dict)

    @classmethod
    def of(cls, material: Material) -> Shelf:
        """All pictures of a run, held out and learned, by row."""
        return cls(material.unit, [(material.photos, int(number)) for number in material.numbers])

    def and_(self, other: Shelf) -> Shelf:
        return Shelf(torch.cat([self.vectors, other.vectors]), [*self.places, *other.places])

    def place_of(self) -> dict[str, int]:
        """Whole path of each picture that is a file -> its place."""
        return {
            absolute(source.root, source.names[number]): place
            for place, (source, number) in enumerate(self.places)
            if isinstance(source, Files)
        }

    def row(
        self, query: Tensor, words: str, spec: PictureSpec, *, own: int | None = None, right: set[int] | None = None
    ) -> Row:
        """The nearest HITS to a unit query (dim,), of equals the earlier first.

        own: the place of the picture asked with; right: places of right answers, None where nobody knows."""
        scores, order = (self.vectors @ query).sort(descending=True, stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(1, len(order) + 1)
        hits = [
            Hit(
                name=self.places[place][0].names[self.places[place][1]], score=score,
                pixels=self._thumbnail(place, spec), right=None if right is None else place in right,
                itself=place == own,
            )
            for place, score in zip(order[:HITS].tolist(), scores[:HITS].tolist(), strict=True)
        ]  # fmt: skip
        return Row(
            words=words, hits=hits, among=len(order), own_rank=None if own is None else int(ranks[own]),
            right_rank=min((int(ranks[place]) for place in right or ()), default=None),
        )  # fmt: skip

    def _thumbnail(self, place: int, spec: PictureSpec) -> Pixels | None:
        if place not in self._thumbnails:
            source, number = self.places[place]
            try:
                self._thumbnails[place] = square(source.read(number), replace(spec, side=THUMBNAIL))
            except BadPicture:
                self._thumbnails[place] = None  # it was readable when its vector was made
        return self._thumbnails[place]


# --- how the lessons went


def lessons_of(run: Path) -> list[Lesson]:
    """The logs of a run: of a teacher of one's own, of the run itself, of its siblings."""
    kind, _, rest = str(read_run(run)["teacher"]).partition(":")
    folders = [("teacher", run / rest)] if kind == "run" else []
    folders.append(("", run))
    siblings = (run / SIBLINGS).glob("k*") if (run / SIBLINGS).is_dir() else ()
    folders += [(f"sibling {path.name}", path) for path in sorted(siblings, key=lambda path: (len(path.name), path))]
    lessons = []
    for whose, folder in folders:
        for path in sorted(folder.glob("*.csv"), key=_lesson_order):
            figures = _figures(path)
            if figures:  # other tables list pictures
                title = f"{whose}: {path.stem}" if whose else path.stem
                lessons.append(Lesson(title, os.path.relpath(path, run), figures))
    return lessons


def _lesson_order(path: Path) -> tuple[int, str]:
    known = path.stem in FIRST_LESSONS
    return (FIRST_LESSONS.index(path.stem) if known else len(FIRST_LESSONS), path.stem)


def _figures(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Of each figure of a lesson's CSV its (step, value); nothing of another table."""
    with path.open(encoding="utf-8") as file:
        if not file.readline().startswith("step,"):
            return {}
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_log(path):
        for name, value in row.items():
            if name != "step":
                found.setdefault(name, []).append((int(row["step"]), value))
    return found
