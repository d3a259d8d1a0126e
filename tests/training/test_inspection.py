"""An inspection shows what is there: heat where attention lies, words that tokens are, pictures in their order."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pocketlens_training.checkpoint import load_run
from pocketlens_training.cli import app
from pocketlens_training.distil import LESSON
from pocketlens_training.inspection import (
    Hit,
    Inspection,
    Lesson,
    Question,
    Row,
    Seen,
    Shelf,
    Token,
    inspect_run,
    look_at,
    spread,
)
from pocketlens_training.inspection_page import curves, is_share, ticks, write_inspection
from pocketlens_training.inspection_sheets import overlay, where_most
from pocketlens_training.loop import save_atomically, write_json
from pocketlens_training.material import Sources
from pocketlens_training.nearest_words import Vocabulary, Word, mark_of, readable
from pocketlens_training.reading import reader_of
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.run import RUN, teacher_of
from pocketlens_training.sets.pixels import square
from pocketlens_training.sets.sources import Files
from pocketlens_training.students.student import make_student
from pocketlens_training.students.token_learner import Reading
from pocketlens_training.teachers.own import from_own
from pocketlens_training.teachers.vocabulary import PAD, SLOT, UNK, word_tokenizer
from pocketlens_wire.pictures import PictureSpec
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

SIDE = 48


def finished(home: Path, *, tokens: int = 4, anchors: int = 0) -> Path:
    """The folder of a run of an untrained student, with the log of one lesson."""
    run, teacher = home / "run", home / "teacher"
    recipe = DistilRecipe(student="tiny-s", side=SIDE, tokens=tokens, anchors=anchors, held_out=6)
    sources = Sources(
        images=home / "photos", told=home / "told.jsonl", sketches=home / "sketches.jsonl",
        questions=home / "questions.jsonl",
    )  # fmt: skip
    run.mkdir()
    begun = {
        "format": 1, "teacher": "run:../teacher", "teacher_id": from_own("run:", teacher).id,
        "sources": sources.relative_to(run), "cache": ".", "recipe": recipe.as_json(),
    }  # fmt: skip
    write_json(run / RUN, begun)
    torch.manual_seed(3)
    student = make_student("tiny-s", teacher_of(run), tokens=tokens, side=SIDE, anchors=anchors)
    with torch.no_grad():  # or a picture in evaluation mode is nearly black to it
        student.learner.queries.mul_(4)
        for pixels in torch.randint(0, 256, (8, 4, SIDE, SIDE, 3), dtype=torch.uint8):
            student.train()(pixels)
    state = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    save_atomically(state, run / f"{LESSON}.safetensors")
    (run / "student.csv").write_text("step,loss,gcd,finds_itself,steps_per_s\n20,4,3,,9\n40,2,1.5,0.25,9\n")
    (run / "unreadable.csv").write_text("picture,problem\na.png,torn\n")
    return run


@pytest.fixture
def home(little, tmp_path) -> Path:
    """A set and a teacher of one's own to spoil."""
    return shutil.copytree(little, tmp_path / "home")


@pytest.fixture
def inspected(home, cpu, quiet):
    def inspected(run: Path | None = None, **asked) -> Inspection:
        return inspect_run(run or finished(home), where=cpu, progress=quiet, **asked)

    return inspected


def command(*arguments: object):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments), "--device", "cpu"])


# --- where it looks


def corner(rows: int, row: int, column: int) -> np.ndarray:
    attention = np.zeros((rows, rows), np.float32)
    attention[row, column] = 1
    return attention


@pytest.mark.parametrize("rows", [2, 6, 14])
@pytest.mark.parametrize(("down", "across"), [(0, -1), (-1, 0), (0, 0), (-1, -1)])
def test_heat_lies_in_the_corner_that_is_looked_at(rows, down, across) -> None:
    pixels = np.full((50, 50, 3), 128, np.uint8)
    drawn = np.asarray(overlay(pixels, corner(rows, down, across), 120), np.float32)
    assert drawn.shape == (120, 120, 3)
    brightness = drawn.sum(2)
    place = np.unravel_index(int(brightness.argmax()), brightness.shape)
    cell = 120 / rows
    assert abs(place[0] - (cell / 2 if down == 0 else 120 - cell / 2)) <= cell / 2
    assert abs(place[1] - (cell / 2 if across == 0 else 120 - cell / 2)) <= cell / 2
    opposite = drawn[119 if down == 0 else 0, 119 if across == 0 else 0]
    assert np.abs(opposite - opposite.mean()).max() < 4  # grey: no heat at all
    assert brightness.max() > 2 * opposite.sum()


def test_an_even_look_is_dim_and_a_picture_shows_through() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    even = np.full((4, 4), 1 / 16, np.float32)
    drawn = np.asarray(overlay(pixels, even, 80), np.float32)
    sharp = np.asarray(overlay(pixels, corner(4, 1, 1), 80), np.float32)
    assert drawn[:, :30].sum(2).max() < 0.6 * sharp[:, :30].sum(2).max()
    assert drawn[40, 70].sum() > drawn[40, 10].sum() + 200  # the white half


def test_tokens_come_row_by_row_from_the_student(home, cpu) -> None:
    teacher = teacher_of(finished(home))
    attention = torch.zeros(1, 2, 16)
    attention[0, 0, 3] = 1  # the end of the first row
    attention[0, 1, 4] = 1  # the beginning of the second
    words = teacher.text.words.weight.detach()
    fake = SimpleNamespace(read=lambda pixels: Reading(2 * words[None, 8:10], attention, attention))
    ((first, second),), sentences = look_at(fake, [np.zeros((9, 9, 3), np.uint8)], Vocabulary(teacher), cpu)  # type: ignore
    assert first.attention[0, 3] == 1 and second.attention[1, 0] == 1
    assert first.attention.sum() == second.attention.sum() == 1
    assert (where_most(first.attention), where_most(second.attention)) == ("upper right", "middle left")
    assert first.peak == 16 and first.half == pytest.approx(1 / 16)
    assert first.norm == pytest.approx(2 * float(words[8].norm()), rel=1e-5)
    assert torch.equal(sentences, 2 * words[None, 8:10])


def test_half_of_an_even_look_is_half_of_the_picture() -> None:
    assert Token(np.full((6, 6), 1 / 36, np.float32), 1.0, []).half == 0.5


def test_a_picture_is_read_alike_alone_and_among_others(inspected, home) -> None:
    """Batch statistics would differ."""
    run = finished(home)
    files = [home / "photos" / f"{n:02d}.png" for n in (3, 4, 5)]
    among = inspected(run, files=files).pictures[0]
    alone = inspected(run, files=files[:1]).pictures[0]
    for one, other in zip(alone.tokens, among.tokens, strict=True):
        assert np.allclose(one.attention, other.attention, atol=1e-6)
        assert one.norm == pytest.approx(other.norm, rel=1e-4)


# --- words


def test_a_token_that_is_a_word_is_nearest_to_that_word(home) -> None:
    teacher = teacher_of(finished(home))
    weight = teacher.text.words.weight.detach()
    ids = [teacher.tokenizer.token_to_id(word) for word in ("red", "photo", ",")]
    nearest = Vocabulary(teacher).nearest(3 * weight[ids])
    assert [words[0].text for words in nearest] == ["red", "photo", ","]
    assert [words[0].id for words in nearest] == ids
    assert all(words[0].cosine == pytest.approx(1, abs=1e-5) for words in nearest)
    brute = F.cosine_similarity(weight[ids[0]][None], weight, dim=1)
    assert nearest[0][1].cosine == pytest.approx(float(brute.topk(2).values[1]), abs=1e-5)
    assert [word.cosine for word in nearest[0]] == sorted((word.cosine for word in nearest[0]), reverse=True)


def test_special_ids_are_no_words(home) -> None:
    teacher = teacher_of(finished(home))
    special = teacher.text.words.weight.detach()[[PAD, SLOT, UNK]]
    named = {word.text for words in Vocabulary(teacher).nearest(special, count=1000) for word in words}
    assert "red" in named
    assert not {name for name in named if name.startswith("<")}
    assert len(named) == teacher.tokenizer.get_vocab_size() - 5


def bytes_as_letters() -> Tokenizer:
    names = ["red</w>", "re", "caf\u00c3\u00a9</w>", ",</w>", "mug</w>"]  # é as the letters of its two bytes
    return Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], end_of_word_suffix="</w>"))


def sentence_pieces() -> Tokenizer:
    return Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁red", -1.0), ("dish", -1.0), (",", -1.0), ("▁", -2.0)], unk_id=0)
    )


def word_pieces() -> Tokenizer:
    return Tokenizer(models.WordPiece({"[UNK]": 0, "red": 1, "##dish": 2, "##,": 3}, unk_token="[UNK]"))


@pytest.mark.parametrize(
    ("tokenizer", "written"),
    [
        (bytes_as_letters(), {"red</w>": "red", "re": "re…", "caf\u00c3\u00a9</w>": "café", ",</w>": ","}),
        (sentence_pieces(), {"▁red": "red", "dish": "…dish", ",": ",", "▁": "(space)"}),
        (word_pieces(), {"red": "red", "##dish": "…dish", "##,": ","}),
        (word_tokenizer(["red", "##"]), {"red": "red", "##": "##"}),
    ],
)
def test_pieces_are_written_as_people_write_them(tokenizer, written) -> None:
    mark = mark_of(tokenizer)
    assert {name: readable(name, mark) for name in written} == written


# --- what is found


def test_rows_are_in_the_order_of_brute_force(inspected, home, cpu) -> None:
    run = finished(home)
    found = inspected(run, count=3, words="but red")
    trained, files = load_run(run), sorted((home / "photos").iterdir())
    teacher = trained.teacher
    pixels = torch.from_numpy(np.stack([square(file.read_bytes(), teacher.picture) for file in files]))
    vectors = F.normalize(teacher.image(pixels)[0], dim=1)
    assert len(found.pictures) == 3 and not found.questions
    for seen in found.pictures:
        assert seen.kind == "held-out" and [row.words for row in seen.rows] == ["", "but red"]
        own = square((home / "photos" / seen.name).read_bytes(), trained.picture)
        assert np.array_equal(seen.pixels, own)
        sentence = trained.student(torch.from_numpy(own)[None])
        for row in seen.rows:
            query = reader_of(teacher, cpu).unit([reader_of(teacher, cpu).composed(row.words)], sentence)[0]
            scores = vectors @ query
            order = scores.argsort(descending=True).tolist()
            assert [hit.name for hit in row.hits] == [files[place].name for place in order[:6]]
            assert [hit.score for hit in row.hits] == pytest.approx(scores[order[:6]].tolist(), abs=1e-5)
            assert (files[order[row.own_rank - 1]].name, row.among) == (seen.name, 48)
            assert [hit.itself for hit in row.hits] == [hit.name == seen.name for hit in row.hits]


def test_equal_pictures_keep_their_order(home) -> None:
    source = Files(home / "photos", [f"{n:02d}.png" for n in range(4)])
    vectors = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0]])
    shelf = Shelf(vectors, [(source, n) for n in range(4)])
    row = shelf.row(torch.tensor([1.0, 0]), "", PictureSpec(side=8, fit="crop"), own=2, right={0, 3})
    assert [hit.name for hit in row.hits] == ["01.png", "03.png", "00.png", "02.png"]
    assert [hit.right for hit in row.hits] == [False, True, True, False]
    assert (row.own_rank, row.right_rank, row.among) == (4, 2, 4)


@pytest.mark.parametrize("listed", [False, True])
def test_questions_know_what_is_right(inspected, home, listed) -> None:
    """With a gallery.txt that is searched, as the log's recall is; without, all pictures of the run."""
    if listed:
        (home / "gallery.txt").write_text("".join(f"photos/{n:02d}.png\n" for n in range(0, 48, 3)))
    found = inspected(count=2)
    lines = [json.loads(line) for line in (home / "questions.jsonl").read_text().splitlines()]
    targets = {line["reference"]: {Path(name).name for name in line["targets"]} for line in lines}
    assert [one.name for one in found.questions] == [lines[0]["reference"], lines[-1]["reference"]]
    for one in found.questions:
        wanted = targets[one.name]
        assert [hit.right for hit in one.row.hits] == [Path(hit.name).name in wanted for hit in one.row.hits]
        shown = [rank for rank, hit in enumerate(one.row.hits, 1) if hit.right]
        assert one.row.right_rank == shown[0] if shown else one.row.right_rank > len(one.row.hits)
        assert one.row.among == (len({*range(0, 48, 3), 1, 5, 2, 6, 3, 7, 4, 8}) if listed else 48)


def test_those_shown_are_spread_over_all() -> None:
    assert spread(100, 3).tolist() == [0, 50, 99]
    assert spread(2, 8).tolist() == [0, 1]
    assert spread(5, 1).tolist() == [0]


# --- any student


@pytest.mark.parametrize(("tokens", "anchors"), [(1, 0), (4, 12), (11, 0)])
def test_any_number_of_tokens_free_or_anchored(inspected, home, tmp_path, tokens, anchors) -> None:
    found = inspected(finished(home, tokens=tokens, anchors=anchors), count=2)
    assert [len(seen.tokens) for seen in found.pictures] == [tokens, tokens]
    assert all(token.attention.shape == (3, 3) for token in found.pictures[0].tokens)
    assert all(abs(token.attention.sum() - 1) < 1e-4 for token in found.pictures[0].tokens)
    assert any("no rival" in note for note in found.notes) == (tokens == 1)
    assert found.facts.get("anchored to words", 0) == anchors
    with Image.open(write_inspection(found, tmp_path / "shown")[1]) as sheet:
        assert sheet.height > 2 * 300 * -(-tokens // 8)


def test_so_few_pictures_that_none_is_held_out(inspected, home) -> None:
    for n in range(9, 48):
        (home / "photos" / f"{n:02d}.png").unlink()
    found = inspected()
    assert {seen.kind for seen in found.pictures} == {"learned"}
    assert any("No picture was held out" in note for note in found.notes)


# --- curves


def test_curves_are_drawn_to_scale() -> None:
    drawn = curves("x", {"loss": [(20, 4.0), (40, 2.0), (60, 1.0)]}, shares=False)
    points = re.search(r'points="([^"]+)"', drawn)
    assert points is not None
    (x1, y1), (x2, y2), (x3, y3) = [tuple(map(float, point.split(","))) for point in points[1].split()]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y2 - y1 == pytest.approx(2 * (y3 - y2), abs=0.3) and y1 < y2
    assert "loss from 4 to 1" in drawn


def test_sixteen_lines_are_told_apart() -> None:
    drawn = curves("x", {f"same {n}": [(20, 0.5)] for n in range(16)}, shares=True)
    assert len(set(re.findall(r'<polyline class="([^"]+)"', drawn))) == 16


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3000), (-0.3, 1), (0, 0.00042), (0, 7)])
def test_ticks_are_few_and_hold_all(low, high) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 9


def test_shares_have_an_axis_of_their_own(inspected) -> None:
    (lesson,) = inspected(count=1).lessons
    assert (lesson.title, lesson.file) == ("student", "student.csv")  # and not the list of unreadable pictures
    assert lesson.figures["finds_itself"] == [(40, 0.25)]
    assert lesson.figures["loss"] == [(20, 4.0), (40, 2.0)]
    shares = ("finds_itself", "recall@10", "same colour", "matched", "cosine")
    assert all(map(is_share, shares)) and not any(map(is_share, ("loss", "gcd", "composition", "lar", "scale")))


# --- the page


class Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str, name: str) -> list[str]:
        return [held[name] or "" for found, held in self.found if found == tag and name in held]


def test_the_page_stands_alone_and_refers_to_what_exists(inspected, tmp_path) -> None:
    found = inspected(count=2)
    made = write_inspection(found, tmp_path / "shown")
    assert [path.name for path in made] == ["index.html", "attention.png", "found.png", "inspect.json"]
    page = made[0].read_text(encoding="utf-8")
    links = Links(page)
    ids = {held["id"] for _, held in links.found if "id" in held}
    for link in links.all("a", "href"):
        assert link[1:] in ids if link.startswith("#") else (made[0].parent / link).is_file(), link
    assert {"#looks", "#questions", "#curves", "#picture-2", "#question-1", "#lesson-1", "found.png"} <= set(
        links.all("a", "href")
    )
    sources = links.all("img", "src")
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    alts = [held.get("alt") for tag, held in links.found if tag == "img"]
    assert all(alts) and len(alts) == len(sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in links.found}
    assert "://" not in page and "prefers-color-scheme:dark" in page
    hits = [hit for seen in found.pictures for hit in seen.rows[0].hits]
    hits += [hit for one in found.questions for hit in one.row.hits]
    frames = [held["class"] for tag, held in links.found if tag == "li" and "class" in held]
    assert frames == ["right" if hit.right else "itself" if hit.itself else "" for hit in hits]


def test_texts_are_escaped(tmp_path) -> None:
    pixels = np.zeros((9, 9, 3), np.uint8)
    token = Token(corner(2, 0, 0), 1.0, [Word("<xword>", 7, 0.5)])
    row = Row("<xwords>", [Hit("<xhit>.png", 0.5, pixels, True, False)], 9, None, 1)
    lesson = Lesson("<xlesson>", "<xfile>.csv", {"<xfigure>": [(20, 1.0)]})
    found = Inspection(
        "<xrun>", {"median word norm": 1.0, "<xfact>": "<xsaid>"},
        [Seen("<xseen>.png", "given", pixels, [token], [row])], [Question("<xquestion>.png", pixels, row)], [lesson],
        ["<xnote>"],
    )  # fmt: skip
    page = write_inspection(found, tmp_path)[0].read_text(encoding="utf-8")
    assert not [tag for tag, _ in Links(page).found if tag.startswith("x")]
    for text in ("word", "words", "hit", "lesson", "file", "figure", "run", "fact", "said", "seen", "question", "note"):
        assert f"&lt;x{text}&gt;" in page


def test_what_an_earlier_inspection_left_is_not_kept(inspected, home, tmp_path) -> None:
    run = finished(home)
    write_inspection(inspected(run, count=1), tmp_path / "shown")
    shutil.rmtree(home / "photos")
    assert [path.name for path in write_inspection(inspected(run), tmp_path / "shown")] == [
        "index.html",
        "inspect.json",
    ]
    assert not (tmp_path / "shown" / "found.png").exists()


# --- the command


def test_the_command_says_where_the_page_is(home) -> None:
    run = finished(home)
    done = command(run, "--pictures", 2)
    assert (done.exit_code, done.stdout.strip()) == (0, str(run / "inspect" / "index.html"))
    assert (run / "inspect" / "attention.png").is_file()


def test_json_is_all_that_is_printed(home) -> None:
    run = finished(home)
    done = command(run, "--pictures", 2, "--words", "but red", "--json", "-o", home / "shown")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told == json.loads((home / "shown" / "inspect.json").read_text())
    assert len(told["pictures"]) == 2 and told["questions"] == [] and told["lessons"][0]["title"] == "student"
    (token, *_) = told["pictures"][0]["tokens"]
    assert len(token["attention"]) == 3 and len(token["words"]) == 5
    assert told["facts"]["pictures searched"] == 48


def test_words_that_the_teacher_never_learned_are_told(home) -> None:
    done = command(finished(home), "--pictures", 1, "--words", "in chartreuse")
    assert done.exit_code == 0 and "lacks a word of “in chartreuse”" in done.stderr


def test_pictures_that_moved_away_leave_the_rest(home) -> None:
    run = finished(home)
    kept = shutil.copy(home / "photos" / "07.png", home / "kept.png")
    (home / "photos").rename(home / "elsewhere")
    bare = command(run, "--json")
    assert bare.exit_code == 0
    told = json.loads(bare.stdout)
    assert told["pictures"] == told["questions"] == [] and told["lessons"]
    assert any("photos: no such file or folder" in note for note in told["notes"])
    assert any("name one with --picture" in note for note in told["notes"])
    given = command(run, "--picture", kept)
    assert given.exit_code == 0 and "the run's pictures cannot be read" in given.stderr
    seen = json.loads((run / "inspect" / "inspect.json").read_text())["pictures"]
    assert [(one["kind"], len(one["tokens"]), one["rows"]) for one in seen] == [("given", 4, [])]


def test_single_pictures_that_are_gone_are_counted(inspected, home) -> None:
    (home / "photos" / "07.png").write_bytes(b"torn")
    found = inspected(count=1)
    assert found.pictures[0].rows[0].among == 47
    assert any(note.startswith("1 of the run's pictures cannot be read") for note in found.notes)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--words", " "], "--words: there are none"),
        (["--picture", "torn.png"], "torn.png: not a picture of a known kind"),
        (["--picture", "none.png"], "none.png: cannot be read (No such file or directory)"),
        (["--picture", "torn.png", "--pictures", "3"], "give one of them"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_one_line(home, monkeypatch, asked, said) -> None:
    run = finished(home)
    monkeypatch.chdir(home)
    (home / "torn.png").write_bytes(b"torn" * 9)
    refused = command(run, *asked)
    assert (refused.exit_code, len(refused.stderr.splitlines()), refused.stdout) == (1, 1, "")
    assert said in refused.stderr
    assert not (run / "inspect").exists()


def test_no_run_and_an_unfinished_one(home) -> None:
    nothing = command(home)
    assert (nothing.exit_code, len(nothing.stderr.splitlines())) == (1, 1)
    assert "no run (it has no run.json)" in nothing.stderr
    run = finished(home)
    (run / f"{LESSON}.safetensors").unlink()
    begun = command(run)
    assert (begun.exit_code, len(begun.stderr.splitlines())) == (1, 1)
    assert "its student is not trained yet" in begun.stderr
