"""What students cost: parameters, arithmetic, bytes, time and memory, beside two image towers, all in one run.

Owns who is compared, how they take turns on the clock, and which ratios are asked for. Weights are drawn, so nothing is
said of what is found. Making the graphs is zoo_making.py's, memory zoo_memory.py's. Called by cli/zoo.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketlens_edge.encoder import PIXELS, SENTENCE
from pocketlens_edge.runtime import Graph
from pocketlens_wire.errors import PocketlensError

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.latency import ratio_of_medians
from pocketlens_bench.world import OnProgress, silently

STUDENTS = (
    "tiny", "mobilenetv3_small_100", "mobilenetv4_conv_small", "efficientnet_lite0", "efficientnet_b0",
    "mobilevitv2_100", "efficientnet_b2",
)  # fmt: skip
TOWERS = {"ViT-B-32": "CLIP ViT-B/32", "MobileCLIP2-S0": "MobileCLIP2-S0"}
WIDTHS = {512: "CLIP ViT-B/32", 768: "CLIP ViT-L/14"}  # of a text tower's words
PRECISIONS = ("fp32", "fp16", "int8")
THREADS = (1, 4)
ROUNDS = 60
IN_A_ROW = 3  # pictures of one turn, after one that fills the caches
CHOOSING = 15  # turns in which the quickest recipe is found
HONESTY = (
    "Weights are drawn, not trained: the table says what a network costs and nothing of what it finds. Time is that of "
    "the graph alone, one square picture; opening and fitting a picture come on top. Of int8 the quickest of the plain "
    "recipes is shown; whether a trained student may be quantised so, pocketlens-export quantize decides. How near "
    "drawn weights stay to themselves in int8 says little of trained ones. The MobileCLIP2 tower is reparametrised, "
    "as its makers run it. A processor without half precision computes fp16 in fp32"
)


@dataclass(frozen=True)
class Inhabitant:
    """One row. model: as timm or open_clip names it; width: of a student's tokens, 0 for an image tower."""

    model: str
    width: int

    @property
    def name(self) -> str:
        return f"{self.model}, {self.width}" if self.width else f"{TOWERS[self.model]} image tower"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A ratio of two rows' times, one thread. least: what is asked for; None if it is only told."""

    says: str
    of: tuple[str, str]
    over: tuple[str, str]
    least: float | None = None


def _asked() -> Iterator[Asked]:
    light = ("mobilenetv4_conv_small, 512", "int8")
    yield Asked(
        says="mobilenetv4_conv_small int8 against CLIP ViT-B/32's image tower fp32",
        of=("CLIP ViT-B/32 image tower", "fp32"), over=light, least=35.0,
    )  # fmt: skip
    yield Asked(
        says="mobilenetv4_conv_small int8 against MobileCLIP2-S0's image tower fp32",
        of=("MobileCLIP2-S0 image tower", "fp32"), over=light, least=20.0,
    )  # fmt: skip
    for model, least in (("mobilenetv4_conv_small", 2.3), ("efficientnet_b0", 1.5), ("efficientnet_lite0", None)):
        row = f"{model}, 512"
        yield Asked(says=f"{model} int8 against its own fp32", of=(row, "fp32"), over=(row, "int8"), least=least)
    yield Asked(
        says="efficientnet_lite0 int8 (ReLU6, no gates) against efficientnet_b0 fp32 (SiLU)",
        of=("efficientnet_b0, 512", "fp32"), over=("efficientnet_lite0, 512", "int8"),
    )  # fmt: skip


ASKED = tuple(_asked())


class UnknownInhabitant(PocketlensError):
    """--only names nobody of the zoo."""


class CannotRun(PocketlensError):
    """A graph that a process of its own could not run."""


def chosen(only: Sequence[str], widths: Sequence[int]) -> list[Inhabitant]:
    """Rows in the table's order. Raises UnknownInhabitant."""
    everyone = [*STUDENTS, *TOWERS]
    for name in only:
        if name not in everyone:
            raise UnknownInhabitant(f"{name}: not in the zoo, which holds {', '.join(everyone)}")
    names = [name for name in everyone if not only or name in only]
    return [Inhabitant(name, width) for name in names for width in ((0,) if name in TOWERS else widths)]


def measure(
    work: Path, *, only: Sequence[str] = (), widths: Sequence[int] = tuple(WIDTHS), rounds: int = ROUNDS, seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:  # fmt: skip
    """Everything `pocketlens-bench zoo` says, as one JSON object. work: graphs lie here, made once."""
    from pocketlens_bench.zoo_making import TOKENS, library_versions, made

    load, began = load_now(), perf_counter()
    rows = chosen(only, widths)
    cards: dict[str, Any] = {}
    folders = {row.name: work / f"{row.model}-{row.width or 'tower'}" for row in rows}
    for number, row in enumerate(rows):
        on_progress(f"graphs: {row.name}", number, len(rows))
        cards[row.name] = made(row.model, row.width, folders[row.name], seed=seed)
    pixels = {
        name: np.random.default_rng(seed).integers(0, 256, (1, card["side"], card["side"], 3), dtype=np.uint8)
        for name, card in cards.items()
    }
    quickest = _quickest(folders, cards, pixels, on_progress)
    files = {
        (name, precision): folder / (quickest[name]["file"] if precision == "int8" else f"encoder.{precision}.onnx")
        for name, folder in folders.items()
        for precision in PRECISIONS
    }
    memory, dead = _memory(files, cards, on_progress)
    files = {key: file for key, file in files.items() if key in memory}
    times = {
        threads: race(
            {key: Graph(file, threads=threads) for key, file in files.items()}, pixels, rounds,
            lambda done, threads=threads: on_progress(f"times, threads: {threads}", done, rounds),
        )
        for threads in THREADS
    }  # fmt: skip
    of_ort = {n: {"fp32": card["ort_bytes"], "int8": quickest[n]["ort_bytes"]} for n, card in cards.items()}
    made_rows = [
        {
            "name": row.name, "model": row.model, "kind": "student" if row.width else "tower",
            **({"tokens": TOKENS, "width": row.width} if row.width else {}),
            **{key: cards[row.name][key] for key in ("side", "parameters", "multiply_adds")},
            "recipe": quickest[row.name]["says"], "near": quickest[row.name]["near"],
            "forms": [
                {
                    "precision": precision, "graph_bytes": files[row.name, precision].stat().st_size,
                    **({} if precision == "fp16" else {"ort_bytes": of_ort[row.name][precision]}),
                    "peak_bytes": memory[row.name, precision],
                    **{f"threads_{n}": spread(times[n][row.name, precision]) for n in THREADS},
                }
                for precision in PRECISIONS
                if (row.name, precision) in files
            ],
        }
        for row in rows
    ]  # fmt: skip
    ratios, left_out = _ratios(times[1], seed)
    card = conditions(
        None, load=load, seconds=round(perf_counter() - began, 1), seeds={"weights and pictures": seed},
        sizes={"rounds": rounds, "pictures a turn": IN_A_ROW}, threads={"timed with": list(THREADS)},
    )  # fmt: skip
    card["versions"] |= library_versions()
    return {
        "benchmark": "zoo",
        "tables": [{"key": "zoo", "title": "Students and image towers", "rows": made_rows}],
        "ratios": ratios,
        "empty_process_bytes": peak([]),
        "governor": governor(),
        "honesty": HONESTY,
        "lost": list(_lost(made_rows, ratios)),
        "left_out": [*dead, *left_out],
        "conditions": card,
    }


# --- times


def race(
    graphs: Mapping[tuple[str, str], Graph], pixels: Mapping[str, NDArray[np.uint8]], rounds: int,
    on_done: Any = silently,
) -> dict[tuple[str, str], list[float]]:  # fmt: skip
    """Milliseconds of one picture: of each graph a number for each round. All take turns, and who begins moves on.

    Each runs once to fill the caches that its neighbours emptied, then IN_A_ROW times; the median counts."""
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in graphs}
    order = list(graphs)
    for turn in range(rounds):
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            feed = {PIXELS: pixels[key[0]]}
            graphs[key].run([SENTENCE], feed)
            several = []
            for _ in range(IN_A_ROW):
                began = perf_counter()
                graphs[key].run([SENTENCE], feed)
                several.append(1e3 * (perf_counter() - began))
            taken[key].append(float(np.median(several)))
        on_done(turn + 1)
    return taken


def spread(taken: Sequence[float]) -> dict[str, float]:
    """The median and both quartiles."""
    low, middle, high = np.quantile(taken, [0.25, 0.5, 0.75])
    return {"p50_ms": float(middle), "p25_ms": float(low), "p75_ms": float(high)}


def _quickest(
    folders: Mapping[str, Path], cards: Mapping[str, Any], pixels: Mapping[str, NDArray[np.uint8]],
    on_progress: OnProgress,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Of each row's int8 recipes the quickest with one thread, found before the clock that counts."""
    found = {}
    for number, (name, folder) in enumerate(folders.items()):
        on_progress("int8 recipes", number, len(folders))
        recipes = cards[name]["recipes"]
        keys = [(name, each["file"]) for each in recipes]
        taken = race({key: Graph(folder / key[1], threads=1) for key in keys}, pixels, CHOOSING)
        found[name] = min(recipes, key=lambda each: float(np.median(taken[name, each["file"]])))
    return found


def _ratios(times: Mapping[tuple[str, str], Sequence[float]], seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Those asked for that can be computed, and what is left out."""
    found, left_out = [], []
    for asked in ASKED:
        if asked.of not in times or asked.over not in times:
            left_out.append(f"{asked.says}: not all of it was measured")
            continue
        ratio = ratio_of_medians(times[asked.of], times[asked.over], seed=seed)
        verdict = None if asked.least is None else ratio.value >= asked.least
        found.append({"name": asked.says, "times_faster": asdict(ratio), "least": asked.least, "reached": verdict})
    return found, left_out


def _lost(rows: Sequence[Mapping[str, Any]], ratios: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for ratio in ratios:
        if ratio["reached"] is False:
            came = ratio["times_faster"]["value"]
            yield f"{ratio['name']}: {came:.2f} times, short of the {ratio['least']:g} asked for"
    for row in (row for row in rows if row["kind"] == "student"):
        forms = {form["precision"]: form for form in row["forms"]}
        for threads in THREADS:
            plain, int8 = (forms[each][f"threads_{threads}"]["p50_ms"] for each in ("fp32", "int8"))
            if int8 >= plain:
                said = f"{threads} thread{'s' if threads > 1 else ''}"
                yield f"`{row['name']}`: int8 is no faster than fp32, {int8:.2f} against {plain:.2f} ms with {said}"


# --- memory and the machine


def _memory(
    files: Mapping[tuple[str, str], Path], cards: Mapping[str, Any], on_progress: OnProgress
) -> tuple[dict[tuple[str, str], int], list[str]]:
    """Bytes of each, and what is left out: half precision, which not every processor's runtime survives. A process of
    its own dies of it alone. Raises PocketlensError where another form cannot be run."""
    found, dead = {}, []
    for number, ((name, precision), file) in enumerate(files.items()):
        on_progress("memory", number, len(files))
        try:
            found[name, precision] = peak([str(file), str(cards[name]["side"]), "1"])
        except CannotRun as error:
            if precision != "fp16":
                raise
            dead.append(f"{name} in fp16: {error}")
    return found, dead


def peak(arguments: Sequence[str]) -> int:
    """Bytes that a process took at most which ran one graph; see zoo_memory.py. Raises CannotRun."""
    ran = subprocess.run(
        [sys.executable, "-m", "pocketlens_bench.zoo_memory", *arguments], capture_output=True, text=True, check=False
    )
    if ran.returncode == 0:
        return int(ran.stdout)
    of = Path(arguments[0]).name if arguments else "an empty process"
    if ran.returncode < 0:
        raise CannotRun(f"ONNX Runtime dies of {of} on this machine (signal {-ran.returncode})")
    raise CannotRun(f"{of} cannot be run: {(ran.stderr.splitlines() or ['no reason given'])[-1]}")


def governor() -> str | None:
    """How this system sets the processor's clock; None where it does not say."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None
