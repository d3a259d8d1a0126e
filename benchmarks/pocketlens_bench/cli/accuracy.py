"""`pocketlens-bench accuracy`: options and help."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell
from pocketlens_bench.cli.scale import Cache, default_cache
from pocketlens_bench.protocols import PROTOCOLS, SETS
from pocketlens_bench.protocols.ranking import Ties

SAMPLE = "sample"
KNOWN = (SAMPLE, *SETS)
ROWS = {"words": "words only", "picture": "picture only", "sum": "sum", "zero-shot": "zero-shot", "tuned": "tuned"}
ENCODINGS = ("int8", "int4", "f16", "f32")
FILES = ("cirr", "circo")  # sets with a test server


@commands.command()
def accuracy(
    which: Annotated[str, typer.Option("--set", metavar="SET", help=f"One of {', '.join(KNOWN)}.")] = SAMPLE,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The set's folder; sample needs none.", show_default=False)
    ] = None,
    bundle: Bundle = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW", help=f"Only these rows, repeatable: {', '.join(ROWS)}.", show_default=False),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these protocols of the set, repeatable.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="The set's own name; default: the one papers report on.")] = "",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="So many queries a task: for a look, not for a report.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="sample: a sixth of it, for a look.")] = False,
    encoding: Annotated[str, typer.Option(help=f"How tokens travel: {', '.join(ENCODINGS)}.")] = "int8",
    ties: Annotated[Ties, typer.Option(help="Which of two equal scores comes first.")] = Ties.PESSIMISTIC,
    allow_missing: Annotated[
        int, typer.Option(min=0, help="So many pictures of a task may be missing; the result names them.")
    ] = 0,
    any_size: Annotated[bool, typer.Option("--any-size", help="Other sizes than the official ones; noted.")] = False,
    submission: Annotated[
        Path | None, typer.Option(metavar="DIR", help="cirr, circo: write the test server's files.", show_default=False)
    ] = None,
    rankings: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write our rankings, for `score`.", show_default=False)
    ] = None,
    per_query: Annotated[bool, typer.Option("--per-query", help="Every query's values too, in the JSON.")] = False,
    cache: Cache = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the cloud's models and of drawing (default: all cores).")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """How well a bundle finds, beside its baselines.

    Pictures are files; tokens come from the device's encoder and travel through the wire codec; query vectors come
    from the cloud's composer. Every figure has a 95 % interval.

    The sample set holds 1,200 composed queries to 6,000 pictures, 5,000 captions to 5,000 pictures and 1,000 sketches
    to 6,000 pictures, searched in a real gallery; what is wanted is always a combination that no training picture
    showed.

    Benchmarks of others are read from their own folders (docs/benchmarks.md has the layouts), every gallery picture is
    put through the image tower once and kept, and a stopped run goes on. jsonl is for queries of your own.

    Examples:

    pocketlens-bench accuracy --json > accuracy.json

    pocketlens-bench accuracy --set cirr --root CIRR --bundle BUNDLE --out cirr.json

    pocketlens-bench accuracy --set circo --split test --root CIRCO --bundle BUNDLE --submission upload

    pocketlens-bench accuracy --set jsonl --root my-queries"""
    check_out(out)
    if which == SAMPLE:
        _sample(bundle, quick=quick, threads=threads, seed=seed, as_json=as_json, out=out)
        return
    _check(which, root, mode or [], protocol or [], encoding)
    _check_written(which, submission, rankings, limited=limit is not None)
    from pocketlens_wire.tokens import Encoding

    from pocketlens_bench.protocols.protocol import Reading
    from pocketlens_bench.report.console_runs import print_run
    from pocketlens_bench.runs import Options, measure

    assert root is not None  # _check
    options = Options(
        protocols=tuple(protocol or ()), rows=tuple(ROWS[name] for name in mode or ()), limit=limit,
        encoding=Encoding(encoding), ties=ties, submission=submission, rankings=rankings, per_query=per_query,
    )  # fmt: skip
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), which, root, cache or default_cache(),
            reading=Reading(split=split, allow_missing=allow_missing, any_size=any_size), options=options, seed=seed,
            threads=threads, on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_run)


def _sample(
    bundle: Path | None, *, quick: bool, threads: int | None, seed: int, as_json: bool, out: Path | None
) -> None:
    from pocketlens_bench.accuracy import measure
    from pocketlens_bench.report.console import print_accuracy
    from pocketlens_bench.world import FULL, QUICK

    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), sizes=QUICK if quick else FULL, seed=seed, threads=threads, on_progress=on_progress
        )
    tell(result, as_json, out, print_accuracy)


def _check_written(which: str, submission: Path | None, rankings: Path | None, *, limited: bool) -> None:
    """Refuse files that would not be written, or that a server would refuse, before minutes are spent."""
    if submission and which not in FILES:
        raise typer.BadParameter(f"--submission: {which} has no test server; {' and '.join(FILES)} have")
    if submission and limited:
        raise typer.BadParameter("--submission with --limit: a server wants every query")
    for name, folder in (("--submission", submission), ("--rankings", rankings)):
        if folder and folder.exists() and not folder.is_dir():
            raise typer.BadParameter(f"{name} {folder}: is a file; a folder is needed")


def _check(which: str, root: Path | None, rows: list[str], protocols: list[str], encoding: str) -> None:
    """Refuse what is no set, row, protocol of the set or encoding, before anything is read."""
    if which not in SETS:
        raise typer.BadParameter(f"--set {which}: no such set; there are {', '.join(KNOWN)}")
    if root is None:
        raise typer.BadParameter(f"--set {which} needs --root, the folder of its annotations and pictures")
    if unknown := [row for row in rows if row not in ROWS]:
        raise typer.BadParameter(f"--mode {unknown[0]}: no such row; there are {', '.join(ROWS)}")
    if unknown := [name for name in protocols if name not in SETS[which]]:
        known = "no protocol of this set" if unknown[0] in PROTOCOLS else "no such protocol"
        raise typer.BadParameter(f"--protocol {unknown[0]}: {known}; {which} has {', '.join(SETS[which])}")
    if encoding not in ENCODINGS:
        raise typer.BadParameter(f"--encoding {encoding}: there are {', '.join(ENCODINGS)}")
