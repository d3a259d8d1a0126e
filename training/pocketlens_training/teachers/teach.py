"""Two lessons that make a teacher from anyone's pictures and captions. The sample world's teacher is made by them too.

First both towers on pictures and captions (CLIP: Radford et al. 2021). Then, if the set has edits, the text tower alone
against the locked image tower (LiT: Zhai et al. 2022): a later phrase overrides an earlier one. That second lesson is
text-side supervision of composition, which pretrained CLIP models do not have: results of such a teacher are not
zero-shot composed retrieval in the papers' sense, although its students see no triplet."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from pocketlens_wire.pictures import PictureSpec
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor

from pocketlens_training.features import list_unreadable, teacher_vectors
from pocketlens_training.loop import Schedule, save_atomically, train, write_json
from pocketlens_training.losses import contrast, hit_rate, twins
from pocketlens_training.reading import Reader, RowMaker
from pocketlens_training.recipe import PROMPTS, differing
from pocketlens_training.sets.feed import Feed, look
from pocketlens_training.sets.lines import BadLines, Captioned, Edited, digest_of, read_pairs
from pocketlens_training.sets.pixels import Ask, VariedPictures
from pocketlens_training.sets.sources import Files, NoPictures
from pocketlens_training.teachers.own import CARD, WEIGHTS, WORDS, TeacherRecipe, as_teacher, build_towers
from pocketlens_training.teachers.vocabulary import LAYOUT, build_vocabulary, count_words, word_tokenizer

MOST_HELD_OUT = 5000
FEWEST = 50  # pictures from which nothing can be learned
SHUFFLED = 2**18  # rows
LOOKED_AT = 10_000  # pictures whose captions are looked through for unknown words
MANY_UNKNOWN = 0.1
UNREADABLE, BEGUN, LOOKED = "unreadable.csv", "begun.json", "looked.safetensors"


def teach(
    pairs: Path, folder: Path, recipe: TeacherRecipe, *, where: Accelerator, progress: Progress, workers: int = 0
) -> dict[str, Any]:
    """Train a teacher on the set that `pairs` describes, into `folder`; returns its card.

    Killed anywhere, the same call goes on. Raises BadLines, NoPictures, ValueError for a folder begun otherwise."""
    if (folder / CARD).is_file() and (folder / WEIGHTS).is_file():
        _refuse_another(folder, recipe)
        card = json.loads((folder / CARD).read_text())
        if card.get("pairs_sha256") != digest_of(pairs):
            raise ValueError(f"{folder} holds a teacher of another set than {pairs}; name another folder")
        return card
    return _Teaching(pairs, folder, recipe, where, progress, workers).go()


def steps_for(pictures: int) -> int:
    """Steps of 256 pictures that suit a set: 1,800 for 100,000, as the sample world's teacher took, growing with the
    root of its size. A rule of thumb: other sizes were not tried at full length."""
    return max(600, round(1800 * (pictures / 100_000) ** 0.5))


class _Teaching:
    """The state that both lessons share."""

    def __init__(
        self, pairs: Path, folder: Path, recipe: TeacherRecipe, where: Accelerator, progress: Progress, workers: int
    ) -> None:
        _refuse_another(folder, recipe)
        self.folder, self.recipe, self.where, self.progress, self.workers = folder, recipe, where, progress, workers
        plain, edited = read_pairs(pairs)
        self.digest = digest_of(pairs)
        self.numbers = {name: i for i, name in enumerate(dict.fromkeys(one.image for one in plain))}
        if strange := next((one.image for one in edited if one.image not in self.numbers), None):
            raise BadLines(f"{pairs}: {strange!r} has an edit but no line with its captions")
        self.source = Files(pairs.parent, list(self.numbers))
        self.seen, self.bad = self._look()
        good = self.seen.keys()
        self.plain = [one for one in plain if self.numbers[one.image] in good]
        self.edited = [one for one in edited if self.numbers[one.image] in good]
        if len(self.plain) < FEWEST:
            first = f"; the first unreadable: {self.bad[0][1]}" if self.bad else ""
            raise NoPictures(
                f"{pairs}: {len(self.plain)} readable pictures with captions; at least {FEWEST} are needed{first}"
            )
        self.kept, self.tried = split(self.plain, recipe.held_out)
        trained_on = {one.image for one in self.kept}
        copied = {self.seen[self.numbers[name]] for name in trained_on}
        self.tried = [one for one in self.tried if self.seen[self.numbers[one.image]] not in copied]
        self.edited = [one for one in self.edited if one.image in trained_on]
        self.tokenizer = word_tokenizer(self._words())
        self._begin()
        torch.manual_seed(recipe.seed)
        self.towers = build_towers(recipe, self.tokenizer.get_vocab_size())
        self.maker = RowMaker(self.tokenizer, LAYOUT, recipe.context)
        self._leave_out_long_edits()
        self._say_what_is_not_read(pairs)

    def _leave_out_long_edits(self) -> None:
        """A caption that leaves no room for its edit would teach that edits say nothing."""
        lengths = self.maker.lengths([edited_text(one) for one in self.edited])
        long = sum(length > self.recipe.context for length in lengths)
        if long:
            said = f"{long} edits are left out: with their caption they are too long for a row"
            self.progress.console.print(said, markup=False)
        self.edited = [one for one, n in zip(self.edited, lengths, strict=True) if n <= self.recipe.context]

    def _say_what_is_not_read(self, pairs: Path) -> None:
        """Words that the vocabulary lacks and captions that are cut. Raises BadLines when no word is known."""
        looked = [caption for one in self.kept[:LOOKED_AT] for caption in one.captions]
        rows = self.maker.rows(looked)
        words = [row[len(LAYOUT.begin) : end] for row, end in zip(rows.token_ids, rows.end, strict=True)]
        total = sum(map(len, words))
        unknown = sum(int((row == LAYOUT.unknown).sum()) for row in words) / max(1, total)
        if unknown == 1:
            raise BadLines(
                f"{pairs}: no word of its captions comes often enough for the vocabulary. Words are what stands "
                "between spaces: put some between them, where a script has none, or give more captions"
            )
        if unknown > MANY_UNKNOWN:
            said = f"{unknown:.0%} of the captions' words are too rare for the vocabulary and all read alike"
            self.progress.console.print(said, markup=False)
        cut = sum(length > self.recipe.context for length in self.maker.lengths(looked))
        if cut:
            said = f"{cut / len(looked):.0%} of the captions are longer than a row of {self.recipe.context} and are cut"
            self.progress.console.print(said, markup=False)

    def _begin(self) -> None:
        """Write recipe and words; only now: what cannot be learned from has begun nothing."""
        held = {"pairs": self.digest, "pictures": hashlib.sha256(b"".join(self.seen.values())).hexdigest()}
        begun = self.folder / BEGUN
        if begun.is_file() and (was := json.loads(begun.read_text())) != held:
            what = " and ".join(key for key in held if was.get(key) != held[key])
            raise ValueError(f"{self.folder} was begun with other {what}; put them back, or name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write(self.folder / "recipe.json")
        (self.folder / WORDS).write_text(self.tokenizer.to_str(pretty=True))
        write_json(begun, held)
        digests = np.frombuffer(b"".join(self.seen.values()), np.uint8).reshape(len(self.seen), -1)
        save_atomically({"digest": torch.from_numpy(digests.copy())}, self.folder / LOOKED)
        if self.bad:
            list_unreadable(self.folder / UNREADABLE, self.bad)
            said = f"{len(self.bad)} pictures cannot be read; {self.folder / UNREADABLE} lists them"
            self.progress.console.print(said, markup=False)

    def go(self) -> dict[str, Any]:
        self._learn_pairs()
        self._round()  # here already: the vectors that edits are learned on are then the kept tower's
        if self.edited:
            self._learn_edits()
        self.towers.requires_grad_(False).eval()
        halves = self._round()
        card = {
            "format": 1,
            "pairs_sha256": self.digest,
            "vocabulary": self.tokenizer.get_vocab_size(),
            "pictures": len(self.kept),
            "captions": sum(len(one.captions) for one in self.kept),
            "edits": len(self.edited),
            "held_out": self._held_out_recall(),
        }
        save_atomically(halves, self.folder / WEIGHTS)
        write_json(self.folder / CARD, card)
        return card

    def _round(self) -> dict[str, Tensor]:
        """Round the weights to half precision, as they are kept: what is measured, taught and exported is the same."""
        state = self.towers.state_dict()
        halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        self.towers.load_state_dict(halves)
        return halves

    def _learn_pairs(self) -> None:
        recipe, groups = self.recipe, grouped(self.kept)
        steps = recipe.steps or steps_for(len(self.kept))
        spec = PictureSpec(side=recipe.side, fit="crop")
        pictures = VariedPictures(self.source, spec, recipe.variation)  # type: ignore[arg-type]

        @lru_cache(maxsize=64)  # pixels are planned ahead of the texts
        def chosen(micro: int) -> NDArray[np.int64]:
            return draw_groups(groups, recipe.batch, self._rng(1, micro))

        def plan(micro: int) -> list[Ask]:
            numbers = [self.numbers[self.kept[i].image] for i in chosen(micro)]
            return asks(numbers, self._rng(2, micro))

        feed = Feed(pictures, plan, device=self.where.device, workers=self.workers)

        def loss_of(module: Any, micro: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
            texts = [some(self.kept[i].captions, rng) for i in chosen(micro)]
            image, text = module(feed.at(micro), self.maker.rows(texts).to(self.where.device))
            image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
            scale = self.towers.scale()
            return contrast(image, text, scale), {"matched": hit_rate(image, text), "scale": scale.detach()}

        train(
            "pairs", self.towers, loss_of, Schedule(steps=steps, rate=recipe.rate, seed=recipe.seed),
            folder=self.folder, where=self.where, progress=self.progress,
        )  # fmt: skip

    def _learn_edits(self) -> None:
        recipe = self.recipe
        steps = recipe.edit_steps or max(200, round(0.4 * (recipe.steps or steps_for(len(self.kept)))))
        self.towers.image.requires_grad_(False)
        lesson = "edits"
        if (self.folder / f"{lesson}.safetensors").exists():
            vectors = torch.empty(0)
        else:
            vectors = F.normalize(self._vectors([self.numbers[one.image] for one in self.kept]), dim=1)
        row_of = {one.image: i for i, one in enumerate(self.kept)}
        groups = grouped(self.kept)
        edits: defaultdict[int, list[Edited]] = defaultdict(list)
        for one in self.edited:
            edits[row_of[one.image]].append(one)

        def text_for(i: int, rng: np.random.Generator) -> str:
            if edits[i] and rng.random() < recipe.edit_share:
                return edited_text(edits[i][int(rng.integers(len(edits[i])))])
            return some(self.kept[i].captions, rng)

        def loss_of(module: Any, micro: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
            rows = draw_groups(groups, recipe.batch, self._rng(3, micro))
            texts = [text_for(int(i), rng) for i in rows]
            _, text = module(None, self.maker.rows(texts).to(self.where.device))
            image = vectors[torch.from_numpy(rows)].to(self.where.device)
            text = F.normalize(text.float(), dim=1)
            return contrast(image, text, self.towers.scale(), same=twins(image)), {"matched": hit_rate(text, image)}

        # The image tower is not run, so even its batch statistics stand still.
        train(
            lesson, self.towers, loss_of, Schedule(steps=steps, rate=recipe.edit_rate, seed=recipe.seed + 1),
            folder=self.folder, where=self.where, progress=self.progress,
        )  # fmt: skip

    def _look(self) -> tuple[dict[int, bytes], list[tuple[str, str]]]:
        """Digests of the pictures that can be read, by number; names of the others, and why. What an earlier call could
        read is not decoded again."""
        bar = self.progress.add_task("looking", total=len(self.source), note="")
        good: dict[int, bytes] = {}
        bad: list[tuple[str, str]] = []
        spec = PictureSpec(side=self.recipe.side, fit="crop")
        kept = self.folder / LOOKED
        known = {row.tobytes() for row in load_file(kept)["digest"].numpy()} if kept.is_file() else set()
        for looked in look(self.source, spec, known=known, workers=self.workers):
            good |= {one.number: one.digest for one in looked if one.problem is None}
            bad += [(self.source.names[one.number], one.problem) for one in looked if one.problem is not None]
            self.progress.advance(bar, len(looked))
        return good, bad

    def _words(self) -> list[str]:
        texts = [caption for one in self.kept for caption in one.captions]
        texts += [text for one in self.edited for text in (one.caption, one.edit)]
        return build_vocabulary(
            count_words(texts), at_least=self.recipe.word_at_least, at_most=self.recipe.words_at_most
        )

    def _vectors(self, numbers: Sequence[int]) -> Tensor:
        """Raw image features float32 (numbers, dim) of the towers as they are."""
        teacher = as_teacher("", self.recipe, self.towers, self.tokenizer)
        bar = self.progress.add_task("vectors", total=len(numbers), note="")
        source = Files(self.source.root, [self.source.names[number] for number in numbers])
        seen = teacher_vectors(
            teacher, source, self.folder / "features", device=self.where.device, workers=self.workers,
            on_done=lambda count: self.progress.advance(bar, count),
        )  # fmt: skip
        self.towers.text.requires_grad_(True)
        self.towers.log_scale.requires_grad_(True)
        return seen.raw

    @torch.no_grad()
    def _held_out_recall(self) -> dict[str, float]:
        """Text to image over the held-out pictures: percent of captions whose picture is among the first 1, 5, 10."""
        if not self.tried:
            return {"pictures": 0}
        images = F.normalize(self._vectors([self.numbers[one.image] for one in self.tried]), dim=1)
        reader = Reader(self.towers.text, self.maker, PROMPTS, self.where, exact=True)
        texts = [one.captions[0] for one in self.tried]
        found = torch.cat([reader.unit(texts[i : i + 256]).cpu() for i in range(0, len(texts), 256)])
        scores = found @ images.T
        own = scores.diagonal()[:, None]
        ranks = (scores >= own).sum(1)  # ties count against oneself
        recall = {f"recall@{k}": round(float((ranks <= k).float().mean()) * 100, 2) for k in (1, 5, 10)}
        return {"pictures": len(self.tried), **recall}

    def _rng(self, purpose: int, micro: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, purpose, micro, self.where.process_index])


def split(plain: Sequence[Captioned], share: float) -> tuple[list[Captioned], list[Captioned]]:
    """Those to train on and those held out: whole groups, chosen by the hash of their name, so that another order or a
    longer file holds out the same."""
    limit, most = round(share * 2**32), min(MOST_HELD_OUT, len(plain) // 5)
    sizes = Counter(one.group or one.image for one in plain)
    held: set[str] = set()
    count = 0
    for number, name in sorted((zlib.crc32(os.fsencode(name)), name) for name in sizes):
        if number >= limit:
            break
        if count + sizes[name] <= most:
            count += sizes[name]
            held.add(name)
    tried = [one for one in plain if (one.group or one.image) in held]
    return [one for one in plain if (one.group or one.image) not in held], tried


class Groups(NamedTuple):
    """Rows of each group, and of each row its group."""

    rows: list[NDArray[np.int64]]
    of_row: NDArray[np.int64]


def grouped(plain: Sequence[Captioned]) -> Groups:
    """A picture without a group is one of its own."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(plain):
        groups[f"group {one.group}" if one.group is not None else f"picture {row}"].append(row)
    of_row = np.empty(len(plain), np.int64)
    for number, rows in enumerate(groups.values()):
        of_row[rows] = number
    return Groups([np.array(rows) for rows in groups.values()], of_row)


def draw_groups(groups: Groups, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `count` rows, no row twice: each with one more of its group, if that has more, side by side: they are
    each other's hard negatives. In a set of both kinds a picture that has a group comes up to twice as often."""
    drawn: dict[int, None] = {}
    single: list[int] = []  # those whose group has no other left: they fill up a batch that lacks rows
    for row in _in_random_order(len(groups.of_row), rng):
        if len(drawn) >= count:
            break
        if row in drawn:
            continue
        group = groups.rows[int(groups.of_row[row])]
        mates = [other for other in group.tolist() if other != row and other not in drawn]
        if not mates and len(group) > 1:
            single.append(row)
            continue
        drawn[row] = None
        if mates:
            drawn[mates[int(rng.integers(len(mates)))]] = None
    for row in single:
        drawn[row] = None
    return np.array(list(drawn)[:count])


def _in_random_order(rows: int, rng: np.random.Generator) -> Iterator[int]:
    """Each row once. Of very many they are drawn as they are asked for: to shuffle them all would outlast a step."""
    if rows <= SHUFFLED:
        yield from rng.permutation(rows).tolist()
        return
    told: set[int] = set()
    while len(told) < rows:
        for row in rng.integers(rows, size=4096).tolist():
            if row not in told:
                told.add(row)
                yield row


def edited_text(one: Edited) -> str:
    """A caption followed by a change, as a composed query has them."""
    return PROMPTS.composed.replace("{words}", one.edit).replace("{sentence}", one.caption)


def asks(numbers: Sequence[int], rng: np.random.Generator, kind: str = "photo") -> list[Ask]:
    """One Ask for each picture, each with a seed of its own."""
    seeds = rng.integers(2**31, size=len(numbers))
    return [Ask(int(number), int(seed), kind) for number, seed in zip(numbers, seeds, strict=True)]


def some(captions: Sequence[str], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))]


def _refuse_another(folder: Path, recipe: TeacherRecipe) -> None:
    """Raises ValueError, saying what differs, when `folder` was begun with another recipe."""
    written = folder / "recipe.json"
    if written.exists() and (was := TeacherRecipe.read(written)) != recipe:
        raise ValueError(
            f"{folder} was begun with another recipe ({differing(asdict(was), asdict(recipe))}); give the options it "
            "was begun with, or name another folder"
        )
