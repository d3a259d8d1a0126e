"""`pocketlens-demo`: the whole house once, on drawn pictures, with every answer checked against ground truth.

Owns the demo's questions and what is printed. The work is done by the rooms' own commands and public functions:
indexer and server run as their own processes, questions go through the edge's encoder and client over gRPC."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import typer
from numpy.random import Generator
from pocketlens_wire.errors import BadBundle, BadQuery, PocketlensError, ServerFault, TooLate
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pocketlens_samples import wording
from pocketlens_samples.catalogue import Edit, Spec, Value, apply, other_value, random_edits, random_spec
from pocketlens_samples.language import caption, edit_phrase
from pocketlens_samples.queries import SHOWN_BY_SKETCH, Picture, composed_set, write_gallery

if TYPE_CHECKING:
    from pocketlens_edge.client import Answer, Hit

SEED = 71_004  # not one of queries.py: the demo's gallery is no benchmark
COMPOSED = 40  # composed queries planted in the gallery; the first that fit below are asked
ONE_EDIT, TWO_EDITS = 4, 2  # of them asked
LEAST_PICTURES = 300  # room for what the questions need
TOP = 10
READY_S = 30.0  # a server that takes longer is not coming
STOP_S = 10.0

HONESTY = (
    "What this shows: a drawn, closed world. Its models know a dozen kinds of things and some 200 words, and were "
    "taught on text how edits are asked for. It proves the deployment and the method; it is not open-vocabulary search."
)

# --- the questions


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question and what answers it: every gallery picture whose payload has the values of `wanted`."""

    kind: str
    anchor: Picture | None
    words: str
    wanted: Mapping[str, Value]
    where: Mapping[str, Value]

    def is_answer(self, payload: Mapping[str, object]) -> bool:
        return all(payload.get(name) == value for name, value in self.wanted.items())


@dataclass(frozen=True)
class Plan:
    """A gallery and the questions to it."""

    gallery: tuple[Picture, ...]
    questions: tuple[Question, ...]

    def answers(self, question: Question) -> int:
        """How many gallery pictures answer it."""
        return sum(question.is_answer(picture.spec.payload()) for picture in self.gallery)


def plan(*, pictures: int, seed: int) -> Plan:
    """Questions of every kind, and a gallery of `pictures` holding 1 to 3 planted answers and decoys for each.

    All wanted combinations are held out of training. Raises BadQuery when the gallery is too small."""
    if pictures < LEAST_PICTURES:
        raise BadQuery(f"--pictures is {pictures}; the demo's questions need at least {LEAST_PICTURES}")
    rng = np.random.default_rng([seed, 1])
    others = [ask(rng) for ask in (_sketch, _sketch_recoloured, _sketch_changed, _words, _few_words, _picture, _filtered)]
    planted = [spec for _, specs in others for spec in specs]
    composed = composed_set(queries=COMPOSED, gallery=pictures - len(planted), seed=seed)
    extra = [
        Picture(f"photo-{len(composed.gallery) + i:06d}", spec, _seed(rng)) for i, spec in enumerate(planted)
    ]
    asked = [
        *_composed(composed.queries, edits=1, count=ONE_EDIT),
        *_composed(composed.queries, edits=2, count=TWO_EDITS),
        *(question for question, _ in others),
    ]
    return Plan((*composed.gallery, *extra), tuple(asked))


Asked = tuple[Question, list[Spec]]  # a question and what to plant for it: answers and decoys


def _composed(queries: Sequence[Any], *, edits: int, count: int) -> list[Question]:
    """The first `count` with so many edits, each changing something the ones before did not."""
    kind = "picture + words" if edits == 1 else "picture + two edits"
    chosen: dict[str, Question] = {}
    for query in queries:
        if len(query.edits) == edits:
            question = Question(
                kind=kind, anchor=query.anchor, words=query.text, wanted=query.target.payload(), where={}
            )
            chosen.setdefault(query.edits[0].attribute, question)
    return list(chosen.values())[:count]


def _sketch(rng: Generator) -> Asked:
    shown = random_spec(rng, held_out=True)
    anchor = Picture("", shown, _seed(rng), kind="sketch")
    question = Question(kind="sketch", anchor=anchor, words="", wanted=_drawn(shown), where={})
    return question, [shown, _repainted(shown, rng), _decoy(shown, rng, SHOWN_BY_SKETCH)]


def _sketch_recoloured(rng: Generator) -> Asked:
    return _sketch_and_words(rng, ("colour", "background"))


def _sketch_changed(rng: Generator) -> Asked:
    return _sketch_and_words(rng, ("pattern",))


def _sketch_and_words(rng: Generator, attributes: Sequence[str]) -> Asked:
    target = random_spec(rng, held_out=True)
    edits = tuple(Edit(name, getattr(target, name)) for name in attributes)
    shown = replace(target, **{name: other_value(target, name, rng) for name in attributes})
    question = Question(
        kind="sketch + words",
        anchor=Picture("", shown, _seed(rng), kind="sketch"),
        words=edit_phrase(shown, edits, rng),
        wanted=_drawn(target) | {edit.attribute: edit.value for edit in edits},
        where={},
    )
    return question, [target, target, shown]


def _words(rng: Generator) -> Asked:
    target = random_spec(rng, held_out=True)
    question = Question(
        kind="words", anchor=None, words=caption(target, rng), wanted=target.payload(), where={}
    )
    return question, [target, _decoy(target, rng)]


def _few_words(rng: Generator) -> Asked:
    target = replace(random_spec(rng, held_out=True), count=2)
    words = f"two {target.colour} {target.pattern} {wording.PLURAL[target.category]}"
    wanted = {name: getattr(target, name) for name in ("count", "colour", "pattern", "category")}
    question = Question(kind="words", anchor=None, words=words, wanted=wanted, where={})
    return question, [target, replace(target, size=other_value(target, "size", rng)), _decoy(target, rng, wanted)]


def _picture(rng: Generator) -> Asked:
    shown = random_spec(rng, held_out=True)
    question = Question(
        kind="picture", anchor=Picture("", shown, _seed(rng)), words="", wanted=shown.payload(), where={}
    )
    return question, [shown, shown, _decoy(shown, rng)]


def _filtered(rng: Generator) -> Asked:
    """The words say one change; another, the background, is left to the filter."""
    target = replace(random_spec(rng, held_out=True), background="grass")
    before = replace(target, colour=other_value(target, "colour", rng))
    anchor = replace(before, background=other_value(target, "background", rng))
    question = Question(
        kind="picture + words, filtered",
        anchor=Picture("", anchor, _seed(rng)),
        words=edit_phrase(anchor, (Edit("colour", target.colour),), rng),
        wanted=target.payload(),
        where={"background": "grass"},
    )
    return question, [target, target, before, anchor, replace(anchor, colour=target.colour)]


def _drawn(spec: Spec) -> dict[str, Value]:
    """What a sketch of it shows."""
    return {name: getattr(spec, name) for name in SHOWN_BY_SKETCH}


def _repainted(spec: Spec, rng: Generator) -> Spec:
    """The same to a sketch, another to a photo."""
    return replace(spec, **{name: other_value(spec, name, rng) for name in ("colour", "background")})


def _decoy(spec: Spec, rng: Generator, within: Sequence[str] | Mapping[str, Value] = ()) -> Spec:
    """Almost the same: one attribute differs, one of `within` if that is given."""
    while True:
        (edit,) = random_edits(spec, 1, rng)
        if not within or edit.attribute in within:
            return apply(spec, [edit])


def _seed(rng: Generator) -> int:
    return int(rng.integers(2**31))


# --- what is on disk


@dataclass(frozen=True)
class Folder:
    """Everything the demo writes lies in one folder, which carries a marker that says so."""

    path: Path

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def anchors(self) -> Path:
        return self.path / "anchors"

    @property
    def gallery(self) -> Path:
        return self.path / "gallery"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    @property
    def ready(self) -> Path:
        return self.path / "server.ready"

    def anchor_file(self, number: int, anchor: Picture) -> Path:
        name = f"{anchor.kind}-{anchor.spec.category}" if anchor.kind == "sketch" else anchor.spec.category
        return self.anchors / f"{number:02d}-{name}.png"

    def prepare(self, state: Mapping[str, object]) -> None:
        """Make the folder, and clear out of it what an earlier run with another `state` left.

        state: "drawn", what decides the pictures; "indexed", what decides their vectors. A folder without our
        marker is somebody's, and refused."""
        marker = self.path / "pocketlens-demo.json"
        if self.path.exists() and not marker.exists() and any(self.path.iterdir()):
            raise BadQuery(f"{self.path}: holds files of another kind; name a new folder with --folder")
        self.path.mkdir(parents=True, exist_ok=True)
        before = json.loads(marker.read_text()) if marker.exists() else {}
        if before == state:
            return
        if before.get("drawn") != state["drawn"]:
            shutil.rmtree(self.pictures, ignore_errors=True)
            shutil.rmtree(self.anchors, ignore_errors=True)
        shutil.rmtree(self.gallery, ignore_errors=True)
        marker.write_text(json.dumps(state, indent=2) + "\n")

    def draw(self, asked: Plan, on_done: Any) -> bool:
        """Write gallery and anchor pictures; False when they were there."""
        if (self.pictures / "payload.jsonl").exists():  # written last
            return False
        from PIL import Image

        self.anchors.mkdir(exist_ok=True)
        for number, question in enumerate(asked.questions, start=1):
            if question.anchor:
                Image.fromarray(question.anchor.pixels()).save(self.anchor_file(number, question.anchor))
        write_gallery(self.pictures, asked.gallery, on_done=on_done)
        return True


def _digest(asked: Plan) -> str:
    """Changes when any picture of the plan would be drawn otherwise (as far as five of them tell)."""
    digest = hashlib.sha256(repr([(p.id, p.spec, p.seed) for p in asked.gallery]).encode())
    digest.update(repr([asdict(question) for question in asked.questions]).encode())
    for picture in asked.gallery[:5]:
        digest.update(picture.pixels().tobytes())
    return digest.hexdigest()


# --- indexer and server, each its own process


def command(name: str) -> list[str]:
    """How to call one of our commands: the script beside this Python, else the module."""
    script = Path(sys.executable).parent / name
    return [_near(script)] if script.exists() else [_near(Path(sys.executable)), "-m", name.replace("-", "_")]


def index(folder: Folder) -> None:
    """Run the real indexer; its progress bar shows. Raises ServerFault when it fails (it has said why)."""
    payload = folder.pictures / "payload.jsonl"
    call = [*command("pocketlens-cloud"), "index", str(folder.pictures), "--gallery", str(folder.gallery)]
    done = subprocess.run([*call, "--payload", str(payload)], check=False)
    if done.returncode:
        raise ServerFault(f"indexing {folder.pictures} failed (exit code {done.returncode}); the lines above say why")


@dataclass
class Server:
    """A server process and where it listens."""

    process: subprocess.Popen[bytes]
    address: str
    ready_s: float
    keep: bool = False


@contextmanager
def serving(folder: Folder) -> Iterator[Server]:
    """A server on a free loopback port. It is stopped on the way out, whatever happened, unless told to `keep`."""
    folder.ready.unlink(missing_ok=True)
    call = [*command("pocketlens-cloud"), "serve", "--gallery", str(folder.gallery), "--port", "0"]
    started = time.monotonic()
    with folder.log.open("wb") as log:
        process = subprocess.Popen(
            [*call, "--ready-file", str(folder.ready)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a Ctrl-C here reaches us first, and --keep outlives the terminal
        )
    server = Server(process, "", 0.0)
    try:
        server.address = _wait_for(process, folder)
        server.ready_s = time.monotonic() - started
        yield server
    except BaseException:
        server.keep = False
        raise
    finally:
        if not server.keep:
            _stop(process)


def _wait_for(process: subprocess.Popen[bytes], folder: Folder) -> str:
    """The address once the server says it is ready."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if folder.ready.exists() and (address := folder.ready.read_text().strip()):
            return address
        if process.poll() is not None:
            raise ServerFault(f"the server ended with exit code {process.returncode}: {_tail(folder.log)}")
        time.sleep(0.02)
    raise TooLate(f"the server was not ready after {READY_S:g} s; its log {folder.log} ends: {_tail(folder.log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return "\n".join(lines[-10:]) or "(its log is empty)"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to finish, then insist."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# --- asking


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One question answered. `ms`: milliseconds by stage. `sent_bytes`: the request message."""

    question: Question
    anchor_file: Path | None
    answer: Answer
    ms: Mapping[str, float]

    @property
    def sent_bytes(self) -> int:
        return self.answer.request_bytes

    def rank(self) -> int | None:
        """Rank of the first right hit, from 1; None when none of the hits is right."""
        for rank, hit in enumerate(self.answer.hits, start=1):
            if self.question.is_answer(hit.payload):
                return rank
        return None


def ask(asked: Plan, folder: Folder, bundle: Path, server: Server) -> list[Outcome]:
    """Every question through the device's own encoder and client."""
    from pocketlens_edge.client import Client
    from pocketlens_edge.encoder import Encoder

    encoder = Encoder.load(bundle)
    ids = {"token_space": encoder.manifest.token_space, "encoder_id": encoder.manifest.encoder}
    outcomes = []
    with Client(server.address, **ids) as client:
        client.describe()  # opens the connection, which is no part of the first question
        for number, question in enumerate(asked.questions, start=1):
            file = folder.anchor_file(number, question.anchor) if question.anchor else None
            encoded = encoder.encode_timed(file) if file else None
            tokens = encoded.tokens if encoded else None
            answer = client.search(tokens, question.words, top=TOP, where=question.where)
            device = sum(encoded.times_ms.values()) if encoded else 0.0
            outcomes.append(
                Outcome(
                    question=question, anchor_file=file, answer=answer, ms={"encode": device, **answer.times_ms}
                )
            )
    return outcomes


# --- showing


def described(payload: Mapping[str, Any]) -> str:
    """What a picture shows, from its payload: "two small red striped mugs with handles on grass"."""
    try:
        category, count = payload["category"], payload["count"]
        many = count > 1
        part = wording.PART[category][payload["part"]][int(many)][0]
        things = wording.PLURAL[category] if many else category
        number = wording.COUNT_WORD[count][0]
        place = wording.PLACE[payload["background"]][0]
    except KeyError:
        return "a picture of another collection"
    return f"{number} {payload['size']} {payload['colour']} {payload['pattern']} {things} {part} {place}"


def _caption(payload: Mapping[str, Any]) -> str:
    """The same for under a thumbnail."""
    return f"{payload.get('colour')} {payload.get('pattern')} {payload.get('category')}"


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row per question: what was asked, the first hit, milliseconds by stage, bytes sent."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_footer=False)
    shown.add_column("", justify="right", style="dim")
    shown.add_column("asked", ratio=4, min_width=18)
    shown.add_column("first hit", ratio=4, min_width=18)
    shown.add_column("right\nat", justify="right")
    for stage in ("encode\nms", "round\ntrip", "text\ntower", "heads\n", "search\n", "bytes\nsent"):
        shown.add_column(stage, justify="right", no_wrap=True)
    for number, outcome in enumerate(outcomes, start=1):
        question, rank = outcome.question, outcome.rank()
        hits = outcome.answer.hits
        right = bool(hits) and question.is_answer(hits[0].payload)
        stages = (f"{outcome.ms[stage]:.1f}" for stage in ("encode", "round_trip", "text_tower", "heads", "search"))
        shown.add_row(
            str(number),
            _asked(question),
            Text(described(hits[0].payload) if hits else "no picture matches", style="green" if right else ""),
            Text(str(rank) if rank else "-", style="green" if rank == 1 else ""),
            *stages,
            f"{outcome.sent_bytes:,}",
        )
    return shown


def _asked(question: Question) -> Text:
    parts = [question.kind]
    if question.anchor:
        parts.append(f"({question.anchor.spec.category})")
    asked = Text(" ".join(parts), style="dim")
    if question.words:
        asked.append(f"\n“{question.words}”", style="not dim")
    for key, value in question.where.items():
        asked.append(f"\nonly {key}={value}", style="not dim")
    return asked


def summary(outcomes: Sequence[Outcome], asked: Plan) -> str:
    """How many questions had a right hit, counted from the answers."""
    ranks = [outcome.rank() for outcome in outcomes]
    first = sum(rank == 1 for rank in ranks)
    five = sum(rank is not None and rank <= 5 for rank in ranks)
    answers = [asked.answers(outcome.question) for outcome in outcomes]
    return (
        f"{first} of {len(ranks)} questions had a right picture at rank 1, {five} of {len(ranks)} among the first five. "
        f"Of {len(asked.gallery):,} pictures, {min(answers)} to {max(answers)} are right for a question."
    )


def write_sheets(outcomes: Sequence[Outcome], folder: Folder, subtitle: str) -> list[Path]:
    """The contact sheet (PNG) and the page (HTML)."""
    from pocketlens_edge.sheet import Row, contact_sheet, html_page
    from pocketlens_edge.show import hit_picture
    from pocketlens_wire.pictures import open_picture

    def shown(outcome: Outcome, hit: Hit) -> tuple[Any, str, bool]:
        return hit_picture(hit, folder.pictures), _caption(hit.payload), outcome.question.is_answer(hit.payload)

    rows = []
    for outcome in outcomes:
        question = outcome.question
        only = "".join(f", {key}={value} only" for key, value in question.where.items())
        anchor = open_picture(outcome.anchor_file) if outcome.anchor_file else None
        hits = [shown(outcome, hit) for hit in outcome.answer.hits]
        rows.append(Row(title=question.kind + only, anchor=anchor, words=question.words, hits=hits))
    sheet, page = folder.path / "contact-sheet.png", folder.path / "answers.html"
    # 256 colours: a third of the bytes, and drawn pictures do not show it
    contact_sheet(rows, subtitle=subtitle).quantize(256).save(sheet, optimize=True)
    html_page(rows, page, subtitle=subtitle)
    return [sheet, page]


def commands(outcomes: Sequence[Outcome], folder: Folder, server: Server) -> list[str]:
    """Three commands to copy: with which the reader asks a question of their own."""
    photo = next(o for o in outcomes if o.question.anchor and o.question.anchor.kind == "photo")
    sketch = next(o for o in outcomes if o.question.anchor and o.question.anchor.kind == "sketch")
    assert photo.question.anchor is not None
    colour = "blue" if photo.question.anchor.spec.colour == "red" else "red"
    there = ["--server", server.address] if server.keep else []
    show = ["--pictures", _near(folder.pictures), "--sheet", "answer.png"]
    search = [*command("pocketlens-edge"), "search"]
    calls = [
        [*search, _near(photo.anchor_file), "--text", f"make it {colour}", *there, *show],
        [*search, _near(sketch.anchor_file), "--text", "in purple, and on grass", *there, *show],
    ]
    if server.keep:
        calls.append([*search, "--text", "two striped hats on a wooden table", *there, *show])
    else:
        calls.insert(0, [*command("pocketlens-cloud"), "serve", "--gallery", _near(folder.gallery)])
    named = os.environ.get("POCKETLENS_BUNDLE")
    prefix = f"POCKETLENS_BUNDLE={shlex.quote(named)} " if named else ""
    return [prefix + shlex.join(call) for call in calls]


def _near(path: Path | None) -> str:
    """The path from here, if it lies below."""
    whole = Path(os.path.abspath(path or "."))  # not resolve(): the Python of a virtual environment is a link
    here = Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


# --- the command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running.")] = False,
    pictures: Annotated[int, typer.Option(help="Pictures in the gallery.")] = 3000,
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws another gallery and asks other questions.")] = SEED,
) -> None:
    """Draw a gallery, index it, serve it, and ask it every kind of question over gRPC.

    Answers are checked against ground truth. Pictures, gallery, contact sheet and server log stay in the folder;
    running it again goes on from there."""
    console = Console()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # so that the server is stopped then, too
    try:
        _run(console, Folder(folder), pictures=pictures, seed=seed, keep=keep)
    except PocketlensError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or folder}: {error.strerror or error}")
    except KeyboardInterrupt:
        typer.echo("pocketlens-demo: stopped; the server too", err=True)
        raise typer.Exit(130) from None


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"pocketlens-demo: {sentence}", err=True)
    raise typer.Exit(1)


def _run(console: Console, folder: Folder, *, pictures: int, seed: int, keep: bool) -> None:
    from pocketlens_edge.bundle import default_bundle
    from pocketlens_wire.manifest import read_cloud, read_edge

    bundle = default_bundle()
    ours, theirs = read_edge(bundle), read_cloud(bundle)
    if ours.token_space != theirs.token_space:
        raise BadBundle(f"{bundle}: its halves speak {ours.token_space} and {theirs.token_space}; export it anew")
    asked = plan(pictures=pictures, seed=seed)
    folder.prepare({"drawn": _digest(asked), "indexed": theirs.gallery_space})

    _step(console, 1, f"Draw {pictures:,} catalogue pictures into {folder.pictures}")
    _draw(console, asked, folder)
    _step(console, 2, f"Index them into {folder.gallery}")
    index(folder)
    _step(console, 3, "Serve the gallery, in a process of its own")
    with serving(folder) as server:
        console.print(
            f"  {server.address}, pid {server.process.pid}, ready after {server.ready_s:.1f} s; log: {folder.log}"
        )
        _step(console, 4, f"Ask {len(asked.questions)} questions: encode here, send tokens and words, search there")
        outcomes = ask(asked, folder, bundle, server)
        server.keep = keep
    console.print(table(outcomes))
    counted = summary(outcomes, asked)
    console.print(Text(f"  {counted}", style="bold"))
    console.print(Text(f"  {HONESTY}", style="dim"))
    _step(console, 5, "Look")
    for path in write_sheets(outcomes, folder, f"bundle {ours.name}; green: ground truth"):
        console.print(f"  {_near(path)}", highlight=False, soft_wrap=True)
    _step(console, 6, "Ask a question of your own" if keep else "Ask a question of your own (serve in one terminal, ask in another)")
    for line in commands(outcomes, folder, server):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
    if keep:
        console.print(f"\n  The server goes on at {server.address}. Stop it with: kill {server.process.pid}")


def _step(console: Console, number: int, what: str) -> None:
    console.print(f"\n[bold]{number}[/bold]  {what}", highlight=False)


def _draw(console: Console, asked: Plan, folder: Folder) -> None:
    columns = (TextColumn("  drawing"), BarColumn(), MofNCompleteColumn())
    # No refreshing thread: the pictures are drawn by forked processes.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = progress.add_task("", total=len(asked.gallery), visible=False)
        shown_at = 0.0

        def on_done(count: int) -> None:
            nonlocal shown_at
            now = time.monotonic()
            if now - shown_at > 0.1 or count == len(asked.gallery):
                progress.update(bar, completed=count, visible=True)
                progress.refresh()
                shown_at = now

        if not folder.draw(asked, on_done):
            console.print("  they are there already")


if __name__ == "__main__":
    app()
