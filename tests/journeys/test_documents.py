"""The pages are true where a machine can tell: links, commands, options, tables that repeat the code."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from pocketlens_bench.protocols import PROTOCOLS
from pocketlens_cloud.serving import front
from pocketlens_edge import outbox
from pocketlens_samples.catalogue import ATTRIBUTES
from pocketlens_samples.language import vocabulary
from pocketlens_wire import limits
from pocketlens_wire.errors import HTTP_STATUS_OF, STATUS_OF
from pocketlens_wire.tokens import Encoding, pack

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]
ROOMS = ("protos", "edge", "cloud", "training", "export", "samples", "benchmarks")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{_name(page)} links to {target}"
        if anchor:
            assert anchor in _anchors(there), f"{_name(page)} links to {target}"


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_names_the_two_commands_and_the_makefile_has_them():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for command in ("demo", "test"):
        assert re.search(rf"^make {command}\b", readme, re.MULTILINE)
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert "KEEP=1" in readme
    assert "$(KEEP)" in makefile


def test_the_readme_maps_every_room_and_each_has_its_screen():
    readme = (ROOT / "README.md").read_text()
    for room in ROOMS:
        assert f"[`{room}/`]({room})" in readme
        assert len((ROOT / room / "README.md").read_text().splitlines()) <= 60, f"{room}/README.md is over a screen"


def test_pictures_of_the_readme_are_small():
    assert (ROOT / "docs/img/contact-sheet.png").stat().st_size < 600_000
    assert (ROOT / "docs/img/query.svg").stat().st_size < 100_000


# --- commands


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_on_a_page_exists_with_its_options(page):
    for line in _command_lines(page.read_text()):
        name, *words = shlex.split(re.split(r"\s{2,}|\s#", line)[0])
        group = _click_command(Path(name).name)
        if not words:
            continue
        command = group
        for word in words[:2]:  # a group of commands may hold another
            if hasattr(command, "commands"):
                command = command.commands.get(word)
            assert command is not None, f"{_name(page)}: {line}"
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, f"{_name(page)}: {word} in {line}"


def _command_lines(text: str) -> Iterator[str]:
    """Lines of fenced blocks and inline code that call one of our commands."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from (line for line in block.splitlines() if re.match(r"(\.venv\S*/bin/)?pocketlens-[a-z]+ ", line))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`((?:\.venv\S*/bin/)?pocketlens-[a-z]+ [^`]*)`", prose)


def _click_command(name: str):
    with (ROOT / "pyproject.toml").open("rb") as file:
        module, _, _ = tomllib.load(file)["project"]["scripts"][name].partition(":")
    values = vars(importlib.import_module(module)).values()
    return typer.main.get_command(next(value for value in values if isinstance(value, typer.Typer)))


# --- tables and figures that repeat the code


def _table(page: str, first: str) -> list[list[str]]:
    """Rows of the table of docs/`page` whose first heading is `first`, without backticks."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def test_the_status_table_is_the_codes():
    written = {row[0]: (row[1], row[2]) for row in _table("wire.md", "error")}
    assert written == {error.__name__: (status.name, str(HTTP_STATUS_OF[error])) for error, status in STATUS_OF.items()}


def test_the_token_tables_are_the_codecs():
    text = (ROOT / "docs/wire.md").read_text()
    for encoding in Encoding:
        four = pack(np.ones((4, 192), np.float32), encoding)
        assert re.search(rf"\| `{encoding}` \|.*\| {len(four.data)} \+ {len(four.scales)} bytes \|", text)
        one = pack(np.array([[1, -1, 0]], np.float32), encoding)
        scales = f"`{one.scales.hex(' ')}` " if one.scales else ""
        assert f"| `{encoding}` | `{one.data.hex(' ')}` | {scales}|" in text


def test_the_limits_are_the_codes():
    said = {row[0]: row[1] for row in _table("query.md", "what")}
    assert said["words"].startswith(f"{limits.MAX_WORDS_BYTES:,} bytes")
    assert said["filters"].startswith(f"{limits.MAX_CONDITIONS} conditions")
    assert said["turns of a conversation"] == str(limits.MAX_TURNS)
    assert said["hits"] == f"{limits.MAX_TOP:,}"
    assert said["one request"] == f"{limits.MAX_REQUEST_BYTES // 1024} KiB"


def test_the_limits_of_the_wire_are_the_codes():
    told = {row[2]: int(row[1].replace(",", "")) for row in _table("wire.md", "of one request")}
    assert told == {name: getattr(limits, name.upper()) for name in told}
    text = (ROOT / "docs/wire.md").read_text()
    for name, unit in (("turns", "turns"), ("conversation_bytes", "bytes in all"), ("idle_s", "s")):
        assert f"{getattr(limits, f'MAX_{name.upper()}'):,} {unit} (`max_{name}`)" in text
    assert f"| {front.MAX_CONVERSATIONS} others converse already |" in text
    assert f"and has {front.TURN_S:g} s." in text


def test_the_limits_of_an_outbox_are_the_codes():
    said = {row[0]: row[1] for row in _table("query.md", "of an outbox")}
    assert said["questions"].startswith(f"{outbox.MAX_QUESTIONS:,} and {outbox.MAX_BYTES // 2**20} MiB")
    assert said["age"].startswith(f"{outbox.MAX_AGE.days} days")


def test_the_sample_worlds_figures_are_the_codes():
    text = (ROOT / "docs/sample-world.md").read_text()
    assert f"{np.prod([len(values) for values in ATTRIBUTES.values()]):,} specifications" in text
    assert f"closed: {len(vocabulary())} words" in text
    assert ", ".join(ATTRIBUTES["category"]) in text


def test_the_protocols_page_names_every_protocol():
    named = {name for row in _table("benchmarks.md", "name") for name in row[0].split(", ")}
    assert named == set(PROTOCOLS) - {"jsonl"}


# --- figures: the README quotes the committed results, and nothing else

RESULTS = ROOT / "benchmarks" / "results"


def _rows(result: dict, key: str) -> dict[str, dict]:
    """Rows of one table of an accuracy result, by name."""
    (table,) = (table for table in result["tables"] if table["key"] == key)
    return {row["name"]: row for row in table["rows"]}


def test_the_readme_quotes_the_committed_results():
    accuracy = json.loads((RESULTS / "sample-accuracy.json").read_text())
    block = (ROOT / "README.md").read_text().split("<!-- results -->")[1].split("<!-- /results -->")[0]
    quoted = re.findall(r"^\| ([a-z][^|]*?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", block, re.MULTILINE)
    rows = _rows(accuracy, "composed")
    assert {name for name, *_ in quoted} == {name for name in rows if "," not in name or name.startswith("sum")}
    for name, *figures in quoted:
        measured = [f"{rows[name][metric]['value']:.1f}" for metric in ("R@1", "R@5", "R@10", "mAP@10")]
        assert figures == measured, name


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _named(rows: list[dict], key: str = "name") -> dict[str, dict]:
    return {row[key]: row for row in rows}


def _latency_said() -> Iterator[str]:
    latency = _result("sample-latency")
    (tuned,) = (table["stages"] for table in latency["tables"] if table["title"] == "end to end, tuned")
    p50 = {stage: times["p50_ms"] for stage, times in tuned.items()}
    yield f"encode on the device {p50['encode']:.1f} ms, round trip {p50['round_trip']:.1f} ms"
    yield f"of it {p50['text_tower']:.1f} in the text tower"
    yield f"{latency['student_and_teacher']['times_faster']['value']:.1f} times faster than the large image tower"
    sent = latency["request"]["encodings"]["int8"]
    yield f"{sent['message_bytes']} bytes, {sent['wire_bytes']} on the wire"
    yield f"{sent['first_wire_bytes']:,}. Server start to first answer: {latency['start']['first_answer_s']:.1f} s"


def _scale_said() -> Iterator[str]:
    tables = _named(_result("sample-scale")["tables"], "title")
    tuned = {row["gallery"]: row["R@10"]["value"] for row in tables["tuned"]["rows"]}
    yield f"tuned R@10 {tuned[1_000]:.1f}, {tuned[100_000]:.1f}, {tuned[1_000_000]:.1f}"
    chosen = _result("synthetic-tradeoff")["chosen"]
    yield f"recall {chosen['recall']:.3f} of exact search, p50 {chosen['p50_ms']:.1f} ms"
    yield f"built in {chosen['build_s'] / 60:.0f} minutes"


def _network_said() -> Iterator[str]:
    rows = [row for row in _result("sample-network")["tables"][0]["rows"] if row["profile"] == "4G"]
    ways = _named(rows, "way")
    yield f"tokens {ways['tokens int8']['up_bytes']} bytes, p95 {ways['tokens int8']['p95_ms']:.0f} ms"
    yield f"the photo as taken {ways['JPEG, as taken']['p95_over_tokens']['value']:.1f} times as long"
    tokens, uploads = (table["capacity_per_s"] for table in _result("sample-load")["tables"])
    yield f"{tokens:.0f} questions a second as tokens, {uploads:.0f} as pictures"


def _tables_said() -> Iterator[str]:
    rows = _named(_result("sample-robustness")["tables"][0]["rows"])
    light, large = (rows[name]["corrupted"]["R@10"]["value"] for name in ("zero-shot", "symmetric"))
    yield f"R@10 {light:.1f} on average, with the large tower {large:.1f}"
    student = _named(_named(_result("sample-robustness")["tables"], "key")["sketch"]["rows"])["zero-shot"]
    pale = _named(student["corruptions"])["low contrast"]["R@10"]["value"]
    yield f"in pale sketches R@10 falls from {student['clean']['R@10']['value']:.1f} to {pale:.1f}"
    rows = _named(_result("sample-tokens")["tables"][0]["rows"])
    counts = [f"{rows[f'k={k}, int8']['R@1']['value']:.1f}" for k in (1, 2, 4, 8)]
    yield f"1, 2, 4, 8 tokens: R@1 {', '.join(counts)}"


def _serving_said() -> Iterator[str]:
    serving = _result("vit-b-32-serving")
    served, bare, library, _ = serving["rates"]
    overload = serving["overload"]
    yield f"{served['per_s']:.0f} questions a second, {library['served_is']:.1f} times open_clip's"
    yield f"{overload['goodput_per_s']:.0f} a second answered (p99 {overload['accepted']['p99_ms']:.0f} ms)"
    yield f"of one question {serving['unloaded']['in_service']['p50_ms']:.1f} ms in the service beyond tower and search"
    yield f"turned away in {overload['turned_away']['p50_ms']:.1f} ms"
    share = 100 * overload["goodput_share"]
    yield f"gets {bare['served_is']:.2f} of what its bare text tower reads, and {share:.0f} % of that"


@pytest.mark.parametrize("said", [_latency_said, _scale_said, _network_said, _tables_said, _serving_said])
def test_the_readme_quotes_the_other_results_too(said):
    block = (ROOT / "README.md").read_text().split("<!-- results -->")[1].split("<!-- /results -->")[0]
    flat = " ".join(block.split())
    for fragment in said():
        assert fragment in flat, fragment


def test_the_committed_results_are_of_the_committed_bundle():
    report = json.loads((ROOT / "samples/pocketlens_samples/bundle/report.json").read_text())
    trained = {"sample-ablation.json", "sample-distill.json", "sample-distill-threads.json"}  # runs, not bundles
    for name in sorted({file.name for file in RESULTS.glob("sample-*.json")} - trained):
        of = json.loads((RESULTS / name).read_text())["conditions"]["bundle"]
        assert {key: of[key] for key in ("encoder", "token_space", "gallery_space")} == {
            key: report[key] for key in ("encoder", "token_space", "gallery_space")
        }, name
