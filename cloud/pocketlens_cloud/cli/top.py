"""`pocketlens-cloud top`: a running server at a glance."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from pocketlens_wire.errors import Unavailable

from pocketlens_cloud.cli.root import AsJson, app, out, plain_errors

if TYPE_CHECKING:
    from rich.console import Group

    from pocketlens_cloud.serving.vitals import Reading, Vitals

MAX_BYTES = 4 << 20  # of figures: far more than there are


@app.command()
def top(
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="What the server was given as --metrics.")
    ] = "127.0.0.1:9464",
    interval_s: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once; rates and quantiles are since the start.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a running server: rates, quantiles of each stage, queue, health, memory.

    Reads what `serve --metrics` tells. On a terminal it stays and is drawn anew; elsewhere each look is a line, or with
    --json an object. The first look is since the server's start, the others since the look before.

    [bold]Examples[/bold]

    pocketlens-cloud top --metrics 127.0.0.1:9464

    pocketlens-cloud top --once --json
    """
    with plain_errors():
        looks = _looks(metrics, interval_s)
        if once or as_json or not out.is_terminal:
            for found in looks:
                _print(metrics, found, as_json=as_json, whole=once)
                if once:
                    return
        from rich.live import Live

        with Live(console=out, screen=True, auto_refresh=False) as live:
            for found in looks:
                live.update(_screen(metrics, found), refresh=True)


def _looks(at: str, interval_s: float) -> Iterator["Vitals"]:
    """One after another, `interval_s` apart."""
    from pocketlens_cloud.serving.vitals import START, vitals

    before: Reading | None = None
    while True:
        now = _fetch(at)
        started = now.each(START)
        yield vitals(now, before, uptime_s=time.time() - min(started) if started else None)
        before = now
        time.sleep(interval_s)


def _fetch(at: str) -> "Reading":
    """Raises Unavailable where no figures are told."""
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import ProxyHandler, build_opener

    from pocketlens_cloud.serving.vitals import reading

    hint = f"no figures at {at}: start the server with `--metrics {at}`, or check the address"
    try:
        with build_opener(ProxyHandler({})).open(f"http://{at}/metrics", timeout=5) as reply:
            text = reply.read(MAX_BYTES).decode("utf-8", "replace")
        return reading(text, time.monotonic())
    except URLError as error:
        raise Unavailable(f"{hint} ({error.reason})") from error
    except HTTPException as error:  # another protocol's port, the service's own say: its bytes are for no terminal
        raise Unavailable(f"{hint} (what answers there does not speak HTTP)") from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"{hint} ({error})") from error


def _print(at: str, found: "Vitals", *, as_json: bool, whole: bool) -> None:
    if as_json:
        out.print(json.dumps(asdict(found)), markup=False, highlight=False, soft_wrap=True)
    elif whole:
        out.print(_screen(at, found), highlight=False)
    else:
        total = found.stages_ms["total"]
        out.print(
            f"{_health(found)}, {_number(found.asked_per_s)} calls/s, p50 {_number(total['p50'])} p95 "
            f"{_number(total['p95'])} p99 {_number(total['p99'])} ms, queue {found.queue_rows}, shed "
            f"{_number(found.shed_per_s)}/s, failed {_number(found.failed_per_s)}/s, {found.rss_bytes / 1e6:.0f} MB",
            markup=False,
            highlight=False,
        )


def _screen(at: str, found: "Vitals") -> "Group":
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    over = "since the start" if found.since_start else f"over {found.over_s:.1f} s"
    head = Text.assemble(
        (_health(found), "green" if found.healthy else "bold red"),
        f"  {at}  {found.runs.get('bundle', '')} {found.runs.get('version', '')}  {over}",
    )
    facts = Table.grid(padding=(0, 2))
    for name, said in (
        ("calls/s", _number(found.asked_per_s)),
        ("of them", f"shed {_number(found.shed_per_s)}, failed {_number(found.failed_per_s)}"),
        ("ended", ", ".join(f"{kind} {count:,}" for kind, count in found.ended.items()) or "none"),
        ("in flight", f"{found.in_flight}"),
        ("queue", f"{found.queue_rows} rows, {found.expected_wait_ms:.0f} ms to wait"),
        ("rows a run", _number(found.rows_per_run)),
        ("gallery", f"{found.pictures:,} pictures, generation {found.runs.get('generation', '?')}"),
        (
            "process" if found.processes == 1 else f"{found.processes} workers",
            f"{found.rss_bytes / 1e6:.0f} MB, {found.open_fds} descriptors",
        ),
    ):  # fmt: skip
        facts.add_row(name, said)
    columns = (Column(f"{name} ms", justify="right") for name in ("p50", "p95", "p99"))
    stages = Table("stage", *columns, box=None, pad_edge=False)
    for stage, quantiles in found.stages_ms.items():
        stages.add_row(stage.replace("_", " "), *(_number(ms) for ms in quantiles.values()))
    return Group(head, facts, stages)


def _health(found: "Vitals") -> str:
    return "healthy" if found.healthy else "NOT SERVING"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
