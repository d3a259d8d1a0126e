"""What parity.json says, as a page to look at: charts in inline SVG that follow the reader's light or dark.

The page loads nothing and executes nothing; every text is escaped. Reads the report alone, so an old one can be drawn
anew. Called by forms.py."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

Report = dict[str, Any]

WIDE = 640
ROW = 26  # of a chart with a row for each thing
NAMES = 190  # room for what a row is called
NEAREST = 1e-8  # 1 - cosine is drawn on a logarithmic scale from here


def write_page(report: Report, path: Path) -> None:
    """Draw `report`, what parity.json holds, as one HTML file."""
    template = Template(resources.files("pocketlens_export").joinpath("parity.html").read_text(encoding="utf-8"))
    gate, forms = report["gate"], report["forms"]
    asked = f"{gate['questions']:,} {gate['by']}"
    page = template.substitute(
        title=_text(f"Parity of {report['name']}"), asked=_text(asked), allowed=f"{gate['allowed']:g}",
        lead=_lead(report), table=_table(forms), changes=_changes(forms, gate["allowed"]), nearness=_nearness(forms),
        overlap=_overlap(forms), costs=_costs(forms), tried=_tried(report), mistakes=_mistakes(report),
        towers=_towers(report["towers"]), conditions=_conditions(report),
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")


def _lead(report: Report) -> str:
    """The outcome in a sentence or two."""
    if report["no_int8"]:
        return f"<p class=bad>No int8 form: {_text(report['no_int8'])}.</p>"
    forms = {form["form"]: form for form in report["forms"]}
    int8, fp32 = forms["int8"], forms["fp32"]
    worst = min(int8["changes"].values(), key=lambda change: change["low"])
    return (
        f"<p class=good>int8 passes: {fp32['bytes'] / int8['bytes']:.1f} times smaller, "
        f"{fp32['p50_ms']['1'] / int8['p50_ms']['1']:.2f} times as fast on one thread, recall@10 "
        f"{_signed(worst)} points.</p>"
    )


def _signed(change: Report) -> str:
    return f"{change['change']:+.2f} ({change['low']:+.2f} to {change['high']:+.2f})"


# --- tables


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column names the row. Cells are HTML."""
    head = "".join(f"<th>{each}" for each in heads)
    body = "".join("<tr><th>" + "<td>".join(row) for row in rows)
    return f"<div class=wide><table><thead><tr>{head}<tbody>{body}</table></div>"


def _table(forms: Sequence[Report]) -> str:
    rows = []
    for form in forms:
        near = form["near"]
        rows.append([
            _text(form["form"]), f"{form['bytes'] / 1e3:,.0f}", *(f"{ms:.2f}" for ms in form["p50_ms"].values()),
            f"{near['least']:.5f}", f"{near['percentile_1']:.5f}", f"{near['mean']:.5f}",
            *(_signed(change) for change in form["changes"].values()),
        ])  # fmt: skip
    modes = [f"recall@10, {_text(mode)}" for mode in forms[0]["changes"]]
    heads = ["form", "KB", "ms, 1 thread", "ms, 4", "cosine, least", "of 1 %", "mean", *modes]
    return _rows(heads, rows)


def _mistakes(report: Report) -> str:
    rows = []
    for each in report["mistakes"]:
        worst = min(each["changes"].values(), key=lambda change: change["low"])
        verdict = "<span class=good>refused</span>" if each["caught"] else "<span class=bad>not noticed</span>"
        rows.append([_text(each["name"]), f"{each['cosine']:.3f}", _signed(worst), f"{worst['overlap']:.0%}", verdict])
    return _rows(["mistake", "tokens' cosine, mean", "recall@10, points", "first ten shared", "the gate"], rows)


def _towers(towers: Sequence[Report]) -> str:
    rows = []
    for each in towers:
        chosen = each["tried"][-1][2] if each["said"] else None
        worst = min(chosen.values(), key=lambda change: change["low"]) if chosen else None
        int8 = f"{each['bytes']['int8'] / 1e6:,.1f}" if worst else "none passed"
        rows.append([
            _text(each["tower"].replace("_", " ")), f"{each['bytes']['fp32'] / 1e6:,.1f}", int8,
            f"{each['p50_ms']['fp32']:.2f}", f"{each['p50_ms']['int8']:.2f}" if worst else "",
            _text(each["said"] or ""), _signed(worst) if worst else _lost(each["tried"]),
        ])  # fmt: skip
    return _rows(["tower", "fp32 MB", "int8 MB", "fp32 ms", "int8 ms", "made", "recall@10, points"], rows)


def _lost(tried: Sequence[Any]) -> str:
    """What the best of those that failed changed."""
    if not tried:
        return ""
    worsts = [min(changes.values(), key=lambda change: change["low"]) for _, _, changes in tried]
    return "best " + _signed(max(worsts, key=lambda change: change["low"]))


def _conditions(report: Report) -> str:
    pictures = report["pictures"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    said = (
        f"Ranges from {pictures['ranges']:,} pictures; nearness and recall on the gate's own. Milliseconds are medians "
        f"of one picture, all forms by turns in one process, on {report['machine']}; {versions}."
    )
    lost = "".join(f"<li>{_text(form)}: {_text(why)}" for form, why in report["left_out"].items())
    unread = "".join(f"<li>{_text(name)}: {_text(why)}" for name, why in pictures["unreadable"])
    lists = {"Forms left out": lost, "Pictures left out, unreadable": unread}
    return f"<p>{_text(said)}" + "".join(f"<p>{title}:<ul>{items}</ul>" for title, items in lists.items() if items)


# --- charts


def _changes(forms: Sequence[Report], allowed: float) -> str:
    """Change of recall with its interval, a row for each form and mode."""
    rows = [(f"{form['form']}, {mode}", change) for form in forms[1:] for mode, change in form["changes"].items()]
    ends = [abs(change[key]) for _, change in rows for key in ("low", "high")]
    reach = 1.15 * max([2 * allowed, *ends])
    high = ROW * len(rows) + 46

    def x(points: float) -> float:
        return NAMES + (points + reach) / (2 * reach) * (WIDE - NAMES - 16)

    parts = [_upright(x(0), high, "axis", "0"), _upright(x(-allowed), high, "limit", f"-{allowed:g}, the limit")]
    for number, (name, change) in enumerate(rows):
        y = ROW * number + 20
        kind = "good" if change["low"] >= -allowed else "bad"
        parts.append(
            f'<text x="0" y="{y + 4}">{_text(name)}</text>'
            f'<line class="{kind}" x1="{x(change["low"]):.1f}" x2="{x(change["high"]):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="{kind}" cx="{x(change["change"]):.1f}" cy="{y}" r="4">'
            f"<title>{_signed(change)}</title></circle>"
        )
    return _svg(high, parts, "Change of recall at 10 of every form with its 95 % interval")


def _upright(x: float, high: int, kind: str, said: str) -> str:
    return (
        f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{high - 30}"/>'
        f'<text class="soft mid" x="{x:.1f}" y="{high - 12}">{_text(said)}</text>'
    )


def _nearness(forms: Sequence[Report]) -> str:
    """1 - cosine by share of tokens, logarithmic: a curve for each form that differs."""
    high, left, bottom = 300, 64, 264
    drawn = [form for form in forms[1:] if min(form["near"]["quantiles"]) < 1 - NEAREST]

    def y(far: float) -> float:
        decades = -math.log10(NEAREST)
        return 12 + (1 - (math.log10(max(far, NEAREST)) + decades) / decades) * (bottom - 12)

    parts = []
    for power in range(0, int(-math.log10(NEAREST)) + 1, 2):
        at = y(10.0**-power)
        parts.append(
            f'<line class="axis" x1="{left}" x2="{WIDE - 110}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="soft" x="0" y="{at + 4:.1f}">{"1" if power == 0 else f"1e-{power}"}</text>'
        )
    ends: list[float] = []
    for number, form in enumerate(drawn):
        quantiles = form["near"]["quantiles"]
        points = [
            (left + n / (len(quantiles) - 1) * (WIDE - 110 - left), y(1 - each)) for n, each in enumerate(quantiles)
        ]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        label = points[-1][1] + 4
        while any(abs(label - other) < 14 for other in ends):
            label += 14
        ends.append(label)
        parts.append(
            f'<polyline class="line c{number % 4}" points="{path}"/>'
            f'<text class="c{number % 4}" x="{WIDE - 104}" y="{label:.1f}">{_text(form["form"])}</text>'
        )
    for share in (0, 50, 100):
        at = left + share / 100 * (WIDE - 110 - left)
        parts.append(f'<text class="soft mid" x="{at:.0f}" y="{bottom + 24}">{share} %</text>')
    return _svg(high, parts, "1 - cosine of tokens, the farthest at the left")


def _overlap(forms: Sequence[Report]) -> str:
    """Of how many questions all ten first are shared, nine, and so on: a bar for each form."""
    high, parts = ROW * (len(forms) - 1) + 30, []
    for number, form in enumerate(forms[1:]):
        change = min(form["changes"].values(), key=lambda change: change["overlap"])
        total, x, y = sum(change["shared"]), float(NAMES), ROW * number + 8
        parts.append(f'<text x="0" y="{y + 14}">{_text(form["form"])}: {change["overlap"]:.1%}</text>')
        for shared in range(10, -1, -1):
            wide = change["shared"][shared] / total * (WIDE - NAMES - 16)
            parts.append(
                f'<rect class="share" style="opacity:{(shared + 1) / 11:.2f}" x="{x:.1f}" y="{y}" width="{wide:.1f}" '
                f'height="18"><title>{shared} of ten: {change["shared"][shared]} questions</title></rect>'
            )
            x += wide
    return _svg(high, parts, "Share of questions by how many of the first ten are shared; full colour: all ten")


def _costs(forms: Sequence[Report]) -> str:
    """Bytes and milliseconds as bars."""
    high, half = ROW * len(forms) + 40, (WIDE - NAMES - 40) / 2
    largest, slowest = max(form["bytes"] for form in forms), max(form["p50_ms"]["1"] for form in forms)
    parts = [
        f'<text class="soft" x="{NAMES}" y="14">KB</text>',
        f'<text class="soft" x="{NAMES + half + 40}" y="14">milliseconds, one thread</text>',
    ]
    for number, form in enumerate(forms):
        y = ROW * number + 24
        parts.append(f'<text x="0" y="{y + 14}">{_text(form["form"])}</text>')
        for x, part, said in (
            (NAMES, form["bytes"] / largest, f"{form['bytes'] / 1e3:,.0f}"),
            (NAMES + half + 40, form["p50_ms"]["1"] / slowest, f"{form['p50_ms']['1']:.2f}"),
        ):
            parts.append(
                f'<rect class="share" x="{x:.0f}" y="{y}" width="{part * (half - 60):.1f}" height="18"/>'
                f'<text x="{x + part * (half - 60) + 6:.0f}" y="{y + 14}">{said}</text>'
            )
    return _svg(high, parts, "Size and time of every form")


def _tried(report: Report) -> str:
    """The recipes of int8, each with its verdict."""
    if not report["tried"]:
        return "<p>None was tried.</p>" + "".join(_blamed(report["layers"]))
    chosen = [form["recipe"] for form in report["forms"] if form["form"] in ("int8", "int8.symmetric")]
    rows = []
    for each in report["tried"]:
        worst = min(each["changes"].values(), key=lambda change: change["low"]) if each["changes"] else None
        verdict = "not asked: a smaller or nearer one passed"
        if worst:
            verdict = "passes" if worst["low"] >= -report["gate"]["allowed"] else "refused"
        if each["recipe"] in chosen:
            verdict = "<b class=good>chosen</b>"
        near = each["near"]
        rows.append([
            _text(each["said"]), f"{each['bytes'] / 1e3:,.0f}", f"{near['percentile_1']:.5f}", f"{near['mean']:.5f}",
            _signed(worst) if worst else "", verdict,
        ])  # fmt: skip
    table = _rows(["recipe", "KB", "cosine of 1 %", "mean", "recall@10, points", ""], rows)
    return table + "".join([*_blamed(report["layers"]), *_blamed(report["layers_symmetric"], " for TensorRT")])


def _blamed(layers: Sequence[Report], reader: str = "") -> Iterator[str]:
    """The layers whose quantisation alone turns the tokens most, where it came to that."""
    if layers:
        yield f"<h3>Layers to blame{reader}</h3>"
        yield _rows(
            ["layer", "1 - mean cosine, quantised alone"],
            [[_text(each["layer"]), f"{each['lost']:.1e}"] for each in layers[:10]],
        )


def _svg(high: float, parts: Sequence[str], said: str) -> str:
    return f'<svg viewBox="0 0 {WIDE} {high:.0f}" role="img" aria-label="{_text(said)}">{"".join(parts)}</svg>'


def _text(said: str) -> str:
    return html.escape(said)
