"""`pocketlens-demo`: the whole house once, on drawn pictures, every answer checked against ground truth.

Owns the order of the steps, the folder they write to and the processes they need. The work is done by the
rooms' own commands and public functions: indexer and server run as their own processes, questions go through
the encoder and client of the device. What is asked: demo_questions.py; what is shown: demo_report.py."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from PIL import Image
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import BadBundle, BadQuery, PocketlensError, ServerFault, TooLate
from pocketlens_wire.manifest import read_cloud, read_edge
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from pocketlens_samples.catalogue import Value
from pocketlens_samples.demo_questions import SEED, Plan, plan
from pocketlens_samples.demo_report import Outcome, counted, honesty, table, write_sheets
from pocketlens_samples.queries import Picture, write_gallery

TOP = 10  # hits asked for
READY_S = 30.0  # a server that takes longer is not coming
WIDTH = 120  # of the output, in characters, where there is no terminal
STOP_S = 10.0  # what a server has to finish its last answers

# --- what is on disk


@dataclass(frozen=True)
class Folder:
    """Everything the demo writes lies in one folder, which carries a marker that says so."""

    path: Path

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def payload(self) -> Path:
        return self.pictures / "payload.jsonl"

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

    @property
    def pid(self) -> Path:
        return self.path / "server.pid"

    def anchor_file(self, number: int, anchor: Picture) -> Path:
        kind = "sketch-" if anchor.kind == "sketch" else ""
        return self.anchors / f"{number:02d}-{kind}{anchor.spec.category}.png"

    def refuse_if_served(self) -> None:
        """A gallery in use must not be changed: BadQuery while a server that was kept is alive."""
        if not (self.ready.exists() and self.pid.exists()):
            return
        pid, address = int(self.pid.read_text()), self.ready.read_text()
        with suppress(OSError), socket.create_connection(_host_and_port(address), 1.0):
            os.kill(pid, 0)
            raise BadQuery(
                f"{self.path}: still served at {address}; stop that server with `kill {pid}`, then try again"
            )

    def prepare(self, state: Mapping[str, str]) -> None:
        """Make the folder, and clear out what an earlier run with another `state` left in it.

        state: `drawn` changes with the pictures, `indexed` with what their vectors mean. A folder without our
        marker is somebody else's: BadQuery."""
        marker = self.path / "pocketlens-demo.json"
        if self.path.exists() and not marker.exists() and any(self.path.iterdir()):
            raise BadQuery(f"{self.path}: holds other files than the demo's; name another with --folder")
        self.path.mkdir(parents=True, exist_ok=True)
        before = json.loads(marker.read_text()) if marker.exists() else {}
        stale = [self.gallery] if before != state else []
        if before.get("drawn") != state["drawn"]:
            stale += [self.pictures, self.anchors]
        for folder in stale:
            if folder.exists():
                shutil.rmtree(folder)
        marker.write_text(json.dumps(state, indent=2) + "\n")

    @property
    def is_drawn(self) -> bool:
        return self.payload.exists()  # it is written last

    def draw(self, asked: Plan, on_done: Callable[[int], None]) -> None:
        """Write the pictures of gallery and questions; `on_done` hears how many of the gallery are there."""
        self.anchors.mkdir(exist_ok=True)
        for number, question in enumerate(asked.questions, start=1):
            if question.anchor:
                Image.fromarray(question.anchor.pixels()).save(self.anchor_file(number, question.anchor))
        write_gallery(self.pictures, asked.gallery, on_done=on_done)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _fingerprint(asked: Plan) -> str:
    """Changes with what is drawn, and with how, as far as a few pictures tell."""
    digest = hashlib.sha256(repr(asked).encode())
    for picture in asked.gallery[:5]:
        digest.update(picture.pixels().tobytes())
    return digest.hexdigest()


# --- indexer and server, each its own process


def command(name: str) -> list[str]:
    """How to call one of our commands: the script beside this Python, else the module."""
    script = Path(sys.executable).parent / name
    return [near(script)] if script.exists() else [near(Path(sys.executable)), "-m", name.replace("-", "_")]


def near(path: Path) -> str:
    """The path from here if it lies below, else the whole path."""
    whole = Path(os.path.abspath(path))  # not resolve(): the Python of a virtual environment is a link
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


def index(folder: Folder) -> None:
    """Run the indexer; its progress bar shows. Raises ServerFault when it failed, having said why."""
    call = [*command("pocketlens-cloud"), "index", str(folder.pictures), "--gallery", str(folder.gallery)]
    done = subprocess.run([*call, "--payload", str(folder.payload)], check=False)
    if done.returncode:
        raise ServerFault(f"{folder.pictures}: indexing ended with exit code {done.returncode}; see above")


@dataclass
class Server:
    """A server process, where it listens, and how long it took to be ready."""

    process: subprocess.Popen[bytes]
    address: str = ""
    ready_s: float = 0.0
    keep: bool = False


@contextmanager
def serving(folder: Folder) -> Iterator[Server]:
    """A server on a free loopback port. It is stopped at the end, unless all went well and `keep` is set."""
    folder.ready.unlink(missing_ok=True)
    call = [*command("pocketlens-cloud"), "serve", "--gallery", str(folder.gallery), "--port", "0"]
    started = time.monotonic()
    with folder.log.open("wb") as log:
        process = subprocess.Popen(
            [*call, "--ready-file", str(folder.ready)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is ours to handle, and a kept server outlives the terminal
        )
    folder.pid.write_text(str(process.pid))
    server = Server(process)
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
    """The server's address, once it is ready."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if folder.ready.exists() and (address := folder.ready.read_text().strip()):
            return address
        if process.poll() is not None:
            raise ServerFault(f"the server ended with exit code {process.returncode}:\n{_tail(folder.log)}")
        time.sleep(0.02)
    raise TooLate(f"the server was not ready after {READY_S:g} s; {folder.log} ends:\n{_tail(folder.log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:]) or "(nothing)"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to finish, then insist; at once if we are interrupted ourselves."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# --- asking


def ask(asked: Plan, folder: Folder, bundle: Path, address: str) -> list[Outcome]:
    """Every question, through the device's own encoder and client."""
    from pocketlens_edge.client import Client
    from pocketlens_edge.encoder import Encoder

    encoder = Encoder.load(bundle)
    outcomes: list[Outcome] = []
    with Client(address, encoder) as client:
        client.describe()  # opens the connection, which is no part of the first question
        for number, question in enumerate(asked.questions, start=1):
            file = folder.anchor_file(number, question.anchor) if question.anchor else None
            encoded = encoder.encode_timed(file) if file else None
            tokens = encoded.tokens if encoded else None
            answer = client.search(tokens, question.words, top=TOP, where=question.where)
            ms = answer.times_ms | ({"encode": sum(encoded.times_ms.values())} if encoded else {})
            outcomes.append(Outcome(question=question, anchor_file=file, answer=answer, ms=ms))
    return outcomes


def commands(outcomes: Sequence[Outcome], gallery: Sequence[Picture], folder: Folder, server: Server) -> list[str]:
    """Three commands to copy, with which the reader asks a question of their own. What the first asks for is there."""
    sketch = next(o for o in outcomes if o.question.anchor and o.question.anchor.kind == "sketch")
    photo, colour = recoloured(outcomes, gallery)
    assert photo.anchor_file
    assert sketch.anchor_file
    search = [*command("pocketlens-edge"), "search"]
    to = ["--server", server.address] if server.keep else []
    show = ["--pictures", near(folder.pictures), "--sheet", "answer.png"]
    serve = [*command("pocketlens-cloud"), "serve", "--gallery", near(folder.gallery)]
    calls = [
        *([] if server.keep else [serve]),
        [*search, near(photo.anchor_file), "--text", f"make it {colour}", *to, *show],
        [*search, near(sketch.anchor_file), "--text", "make it purple, and on grass", *to, *show],
        *([[*search, "--text", "two striped hats on a table", *to, *show]] if server.keep else []),
    ]
    named = os.environ.get("POCKETLENS_BUNDLE")
    prefix = f"POCKETLENS_BUNDLE={shlex.quote(named)} " if named else ""
    return [prefix + shlex.join(call) for call in calls]


def recoloured(outcomes: Sequence[Outcome], gallery: Sequence[Picture]) -> tuple[Outcome, Value]:
    """A photo that was asked with, and a colour in which the gallery has the same thing, best against the same ground
    and as large; without any, the first and another colour."""
    photos = [o for o in outcomes if o.question.anchor and o.question.anchor.kind == "photo"]
    for lenient in ((), ("background",), ("background", "size")):
        for outcome in photos:
            assert outcome.question.anchor
            mine = outcome.question.anchor.spec.payload()
            for picture in gallery:
                other = picture.spec.payload()
                differing = {name for name in mine if mine[name] != other[name]}
                if "colour" in differing and differing <= {"colour", *lenient}:
                    return outcome, other["colour"]
    first = photos[0].question.anchor
    return photos[0], "blue" if first and first.spec.colour == "red" else "red"


# --- the command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running.")] = False,
    pictures: Annotated[int, typer.Option(help="Pictures in the gallery.")] = 3000,
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another one draws and asks something else.")] = SEED,
) -> None:
    """Draw a gallery, index it, serve it, and ask it every kind of question over gRPC.

    Answers are checked against ground truth. Pictures, gallery, contact sheet and server log stay in the
    folder; what is there already is not done again."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # so that the server is stopped then, too
    try:
        _run(_console(), Folder(folder), pictures=pictures, seed=seed, keep=keep)
    except PocketlensError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.filename or folder}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _fail("stopped; nothing is left running", 130)


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _fail(sentence: str, exit_code: int) -> NoReturn:
    typer.echo(f"pocketlens-demo: {sentence}", err=True)
    raise typer.Exit(exit_code)


def _run(console: Console, folder: Folder, *, pictures: int, seed: int, keep: bool) -> None:
    """The six steps."""
    bundle = default_bundle()
    edge, cloud = read_edge(bundle), read_cloud(bundle)
    if edge.token_space != cloud.token_space:
        raise BadBundle(f"{bundle}: its halves speak {edge.token_space} and {cloud.token_space}; export it anew")
    asked = plan(pictures=pictures, seed=seed)
    folder.refuse_if_served()
    folder.prepare({"drawn": _fingerprint(asked), "indexed": cloud.gallery_space})

    _step(console, 1, f"Draw {pictures:,} catalogue pictures into {folder.pictures}")
    _draw(console, asked, folder)
    _step(console, 2, f"Index them into {folder.gallery}")
    index(folder)
    _step(console, 3, "Serve the gallery, from a process of its own")
    with serving(folder) as server:
        ready = f"ready after {server.ready_s:.1f} s; log: {folder.log}"
        _say(console, f"{server.address}, pid {server.process.pid}, {ready}")
        _step(console, 4, f"Ask {len(asked.questions)} questions: tokens and words go over, pictures stay here")
        outcomes = ask(asked, folder, bundle, server.address)
        server.keep = keep
    console.print(table(outcomes))
    console.print(Text(counted(outcomes, asked), style="bold"))
    console.print(Text(honesty(), style="dim"))
    _step(console, 5, "Look at the answers, ground truth marked")
    for path in write_sheets(
        outcomes, folder.path, folder.pictures, f"bundle {edge.name}, {pictures:,} drawn pictures"
    ):
        _say(console, near(path))
    _step(
        console,
        6,
        "Ask a question of your own" + ("" if keep else " (serve in one terminal, ask in another)"),
    )
    for line in commands(outcomes, asked.gallery, folder, server):
        _say(console, line)
    if keep:
        console.print()
        _say(console, f"The server stays at {server.address}. Stop it with: kill {server.process.pid}")


def _console() -> Console:
    """As wide as the terminal; in a log file there is room for the table."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def _step(console: Console, number: int, what: str) -> None:
    console.print(f"\n[bold]{number}  {what}[/bold]", highlight=False)


def _say(console: Console, line: str) -> None:
    """One line that can be copied whole: not wrapped, not coloured."""
    console.print(Text(f"   {line}"), soft_wrap=True)


def _draw(console: Console, asked: Plan, folder: Folder) -> None:
    if folder.is_drawn:
        _say(console, "they are there already")
        return
    columns = (TextColumn("   drawing"), BarColumn(), MofNCompleteColumn())
    # Without a refreshing thread, since the pictures are drawn by forks of this process.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = progress.add_task("", total=len(asked.gallery))

        def on_done(count: int) -> None:
            if count % 50 == 0 or count == len(asked.gallery):
                progress.update(bar, completed=count, refresh=True)

        folder.draw(asked, on_done)


if __name__ == "__main__":
    app()
