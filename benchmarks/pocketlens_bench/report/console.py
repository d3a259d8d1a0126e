"""Results as people read them: tables and the conditions under them.

Takes the JSON objects of accuracy.py and latency.py as they are; computes nothing. Called by cli/."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Json = Mapping[str, Any]

ALL = ("R@1", "R@5", "R@10", "mAP@10")
SHOWN = {"text_to_image": ALL[:3], "sketch": ALL[:3]}  # the others: ALL
COMPARED = ("R@10", "mAP@10")
BUSY = 1.0  # processes wanting to run at the start; from here on times are not the bundle's alone
STAGES = {
    "load": "load encoder",
    "pack_and_read": "pack, read reply",
    "round_trip": "round trip",
    "transport": "  transport",
    "check": "  server: check",
    "queue": "  server: queue",
    "text_tower": "  server: text tower",
    "heads": "  server: query head",
    "search": "  server: gallery",
}


def print_accuracy(console: Console, result: Json) -> None:
    """Tables, then what to know before quoting them."""
    for table in result["tables"]:
        _heading(console, f"{table['title']}: {table['queries']:,} queries, {table['gallery']:,} pictures")
        console.print(accuracy_table(table))
        if table["differences"]:
            _heading(console, f"{table['title']}: paired differences")
            console.print(differences_table(table))
        console.print()
    _print_lines(console, accuracy_notes(result))
    _print_lines(console, condition_lines(result["conditions"]))


def accuracy_table(table: Json) -> Table:
    """One row per way of asking: percent."""
    metrics = SHOWN.get(table["key"], ALL)
    shown = _table(["asked by"], [f"{name} %" for name in metrics])
    for row in table["rows"]:
        shown.add_row(row["name"], *(_measured(row[name]) for name in metrics))
    return shown


def differences_table(table: Json) -> Table:
    """Paired differences in points; an interval on one side of 0 is a difference."""
    shown = _table(["of", "over"], [f"{name}, points" for name in COMPARED])
    for row in table["differences"]:
        shown.add_row(row["of"], row["over"], *(_measured(row[name], sign="+") for name in COMPARED))
    return shown


def accuracy_notes(result: Json) -> Iterator[str]:
    checked = min(row["same_first_ten_as_exact"] for table in result["tables"] for row in table["rows"])
    conditions = result["conditions"]
    weight = conditions["tuned_weight"]
    yield "After ±: half of the 95 % interval by bootstrap over queries; both ends are in the JSON."
    yield f"Ranking: {result['ranking']}. First ten as by a plain matrix product: {checked:.1f} % of queries or more."
    yield (
        f"Sum: the large tower's picture vector + weight * words vector; untuned 1, tuned {weight['weight']:g}, "
        f"chosen by {weight['by']} (seed {conditions['seeds']['validation']})."
    )
    yield "The row `tuned` searches the gallery's `union` vectors, every other row `original`. Tokens travel as int8."
    yield from (f"Left out: {said}." for said in result["left_out"])
    yield f"Read with care: {result['honesty']}"


def print_latency(console: Console, result: Json) -> None:
    """Tables of stages, then ratios, bytes and starts in sentences."""
    for table in result["tables"]:
        _heading(console, f"{table['title']}, {table['rounds']:,} rounds")
        console.print(times_table(table))
        console.print()
    _print_lines(console, latency_notes(result))
    _print_lines(console, condition_lines(result["conditions"]))


def times_table(table: Json) -> Table:
    """Milliseconds of each stage."""
    quantiles = ("p50_ms", "p95_ms", "p99_ms")
    shown = _table(["stage, ms"], [name.removesuffix("_ms") for name in quantiles])
    for stage, times in table["stages"].items():
        shown.add_row(STAGES.get(stage, stage), *(f"{times[name]:.2f}" for name in quantiles))
    return shown


def latency_notes(result: Json) -> Iterator[str]:
    ratio, sent, start, first = (result[key] for key in ("student_and_teacher", "request", "start", "first_query"))
    faster = ratio["times_faster"]
    yield (
        f"Student against the large image tower, in turn: {ratio['student_ms']:.2f} and {ratio['teacher_ms']:.2f} ms, "
        f"{faster['value']:.2f} times faster (95 % interval {faster['low']:.2f} to {faster['high']:.2f})."
    )
    if macs := ratio["million_multiply_adds"]:
        fewer = macs["teacher"] / macs["student"]
        yield f"Multiply-adds: {macs['student']:.1f} and {macs['teacher']:.1f} million, {fewer:.1f} times fewer."
    for name, row in sent["encodings"].items():
        yield (
            f"Request in {name}, {sent['words']} words: message {row['message_bytes']:,} bytes; on the wire "
            f"{row['wire_bytes']:,}, and {row['first_wire_bytes']:,} for the first one with the connection's opening."
        )
    yield (
        f"Server start to first answer: {start['first_answer_s']:.2f} s, of it {start['ready_s']:.2f} s until ready; "
        f"median of {start['starts']}, files in the system's cache."
    )
    if (result["conditions"]["machine"]["load_at_start"] or 0) >= BUSY:
        yield "Other work ran on this machine at the start: trust the ratio and the bytes, not the times."
    yield (
        f"First query of a new connection to a new server: {first['cold_ms']:.1f} ms round trip; "
        f"later ones {first['warm_ms']:.1f} ms. {result['conditions']['sizes']['gallery']:,} pictures in the gallery."
    )


def condition_lines(conditions: Json) -> Iterator[str]:
    """The card in sentences; what an older card does not say is left out."""
    bundle, machine = conditions.get("bundle"), conditions["machine"]
    if bundle:
        yield (
            f"Bundle: {bundle['name']}, {bundle['encoder']}, {bundle['token_space']}, {bundle['gallery_space']}; "
            f"{bundle['tokens']} tokens of width {bundle['token_width']}."
        )
    memory = f", {machine['ram_gb']} GB" if machine.get("ram_gb") else ""
    threads = f"; threads: {_pairs(conditions['threads'])}" if conditions.get("threads") else ""
    yield (
        f"Machine: {machine['cpu']}, {machine['cores']} cores{memory}, {machine['system']}; load at start "
        f"{machine['load_at_start']}{threads}."
    )
    if stolen := machine.get("stolen_share"):
        yield f"Its host gave {stolen:.0%} of the time it wanted to others."
    seeds = f"Seeds: {_pairs(conditions['seeds'])}. " if "seeds" in conditions else ""
    yield f"{seeds}Versions: {_pairs(conditions['versions'])}."
    if "commit" in conditions:
        yield f"Commit: {commit_text(conditions['commit'])}."
    took = f"Took {conditions['seconds']:g} s, " if "seconds" in conditions else "Measured "
    yield f"{took}{conditions['time']}."


def commit_text(commit: Json) -> str:
    """What a card says of the source."""
    if commit["id"] is None:
        return f"not known ({commit['reason']})"
    return f"{commit['id'][:12]}{', with changes not committed' if commit['dirty'] else ''}"


def _table(texts: list[str], numbers: list[str]) -> Table:
    shown = Table()
    for name in texts:
        shown.add_column(name, no_wrap=True)
    for name in numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def _heading(console: Console, text: str) -> None:
    console.print(text, style="bold", markup=False, highlight=False)


def _print_lines(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _pairs(values: Json) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _measured(figure: Mapping[str, float], *, sign: str = "") -> str:
    return f"{figure['value']:{sign}.1f} ±{(figure['high'] - figure['low']) / 2:.1f}"
