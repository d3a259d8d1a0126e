"""The tables of docs/scale.md: what each number is and where it stands, then sizes and rates.

The same results and assumptions give the same text, so a test holds the committed page to the code. The words around
the tables are written by hand. Called by cli/plan.py."""

from collections.abc import Iterator
from dataclasses import fields

from pocketlens_bench.plan import FORMS, Ask, Assumed, Measured, Planned, picture_disk, picture_ram, plan, times
from pocketlens_bench.report.blocks import table

SIZES = (1e7, 1e9, 1e11)
RATES = (1e3, 1e5)
TABLES = ("measured", "assumed", "memory", "nodes", "times", "front")
SAID = {
    "width": "numbers of a vector",
    "names": "vectors of a picture, `original` and `union`, each with a graph of its own",
    "payload_bytes": "payload of a picture, on disk",
    "links": "m of the graphs",
    "replicas": "copies of each shard at least",
    "node_ram_gb": "memory of a gallery node, GB",
    "node_cores": "its cores",
    "node_reads_per_s": "random reads a second of its disk",
    "node_gbit_s": "its network, Gbit/s",
    "node_price_h": "an hour of it, in money: an example, not a quotation",
    "front_cores": "cores of a node that runs server processes",
    "front_price_h": "an hour of it: an example, not a quotation",
    "fill": "share of memory that is used",
    "utilisation": "share of time that processors, disks, network, Python's lock and the threads that search are busy",
    "rows": "rows of the text tower for a question: tuned mode, picture and words",
    "row_tokens": "tokens of a row",
    "top": "hits asked for",
    "hit_bytes": "a hit between nodes, bytes",
    "rescored": "vectors each shard reads from disk for a question: hits asked for, x 2",
    "most_in_shard": "vectors of a name in a shard at most: 50 times what was measured",
}


def refreshed(page: str, measured: Measured, assumed: Assumed | None = None) -> str:
    """`page` with every table between its marks made anew. Raises ValueError for a page that lacks a mark."""
    for name in TABLES:
        if any(mark not in page for mark in _marks(name)):
            raise ValueError(f"the page has no {' ... '.join(_marks(name))}")
    for name, text in tables(measured, assumed or Assumed()).items():
        begin, end = _marks(name)
        head, _, rest = page.partition(begin)
        page = f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- plan:{name} -->", f"<!-- /plan:{name} -->"


def tables(measured: Measured, assumed: Assumed) -> dict[str, str]:
    """Each table of the page by its name."""
    planned = [
        plan(measured, assumed, Ask(pictures=size, questions_per_s=rate, form=form))
        for size in SIZES
        for rate in RATES
        for form in FORMS
    ]
    return {
        "measured": table(["what", "where it stands", "value"], _measured(measured), texts=2),
        "assumed": table(["`Assumed`", "what", "value"], _assumed(assumed), texts=2),
        "memory": table(
            ["searches walk", "memory, a picture", "on disk", *(f"memory of {count(size)}" for size in SIZES)],
            _memory(measured, assumed),
        ),
        "nodes": table(
            ["pictures", "a second", "walk", "shards", "nodes for memory", "for search", "for reads", "for network",
             "gallery nodes", "breaks first", "processes", "limited by"],
            map(_nodes, planned),
        ),
        "times": table(
            ["pictures", "a second", "walk", "p50 ms", "p99 ms", "search, core seconds a question",
             "network, GB/s", "encode, core hours", "graphs, core hours", "graphs, hours", "cost of a million"],
            (_times(measured, assumed, each) for each in planned),
        ),
        "front": table(["part of one process", "questions a second"], _front(planned)),
    }  # fmt: skip


def _measured(measured: Measured) -> Iterator[list[str]]:
    for each in measured.found():
        yield [each.what, f"`{each.source}`", number(each.value)]
    beside = ", ".join(number(speed) for speed in measured.speeds)
    yield ["speed of each of 1, 2, ... runs of the tower at once", f"`{measured.front_file}: costs.speeds`", beside]
    yield ["memory over vectors, copies and links", "from the above", number(measured.overhead)]
    yield ["scatter of a search's time (of its logarithm)", "from the above", number(measured.scatter)]


def _assumed(assumed: Assumed) -> Iterator[list[str]]:
    for each in fields(assumed):
        yield [f"`{each.name}`", SAID[each.name], f"{getattr(assumed, each.name):,}"]


def _memory(measured: Measured, assumed: Assumed) -> Iterator[list[str]]:
    for form in FORMS:
        one = picture_ram(measured, assumed, form)
        whole = (f"{bytes_of(size * one)} x {assumed.replicas}" for size in SIZES)
        yield [form, bytes_of(one), bytes_of(picture_disk(assumed, form)), *whole]


def _nodes(planned: Planned) -> list[str]:
    limit = min(planned.front_limits, key=lambda name: planned.front_limits[name])
    return [
        *_asked(planned),
        f"{planned.shards:,}",
        *(f"{nodes:,}" for nodes in planned.nodes_for.values()),
        f"{planned.gallery_nodes:,}",
        planned.breaks_first,
        f"{planned.fronts:,}",
        limit,
    ]


def _times(measured: Measured, assumed: Assumed, planned: Planned) -> list[str]:
    took = times(measured, assumed, planned) if planned.believable else None
    return [
        *_asked(planned),
        *((f"{took[key]:.0f}" for key in ("p50_ms", "p99_ms")) if took else ("not simulated", "not simulated")),
        number(planned.search_cpu_s),
        number(planned.network_bytes_s / 1e9),
        number(planned.encode_core_h),
        number(planned.build_core_h),
        number(planned.build_h),
        number(planned.per_million),
    ]


def _front(planned: list[Planned]) -> Iterator[list[str]]:
    """Of the smallest and the largest that is believable."""
    few, many = planned[1], [each for each in planned if each.believable][-2]
    for name in few.front_limits:
        said = [each.front_limits[name] for each in (few, many)]
        yield [
            f"{name}, searching {few.shards} or {many.shards} shards",
            " or ".join(f"{each:,.0f}" for each in said),
        ]


def _asked(planned: Planned) -> list[str]:
    return [count(planned.ask.pictures), f"{planned.ask.questions_per_s:,.0f}", planned.ask.form]


def count(value: float) -> str:
    """10 million, 1 billion, 100 billion."""
    for name, scale in (("billion", 1e9), ("million", 1e6)):
        if value >= scale:
            return f"{value / scale:g} {name}"
    return f"{value:,.0f}"


def number(value: float) -> str:
    """Three digits, thousands with commas."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}" if value >= 1e-4 or not value else f"{value:.2e}"


def bytes_of(value: float) -> str:
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{value:.0f} B"
