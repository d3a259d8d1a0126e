"""`pocketlens-bench score` and `protocols`: options and help."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pocketlens_bench.cli.root import Json, Out, Seed, check_out, commands, tell
from pocketlens_bench.protocols import PROTOCOLS, SETS
from pocketlens_bench.protocols.ranking import Ties

Name = Annotated[str, typer.Argument(metavar="PROTOCOL", help="`pocketlens-bench protocols` lists them.")]


@commands.command()
def score(
    protocol: Name,
    ranking: Annotated[Path, typer.Option(metavar="FILE", help="The ranking: .jsonl, TREC run, .npz or a submission.")],
    annotations: Annotated[Path, typer.Option(metavar="DIR", help="The benchmark's folder; pictures are not needed.")],
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another ranking: differences, paired.", show_default=False)
    ] = None,
    ties: Annotated[Ties, typer.Option(help="Which of two equal scores comes first.")] = Ties.PESSIMISTIC,
    split: Annotated[str, typer.Option(help="The benchmark's own name; default: the one papers report on.")] = "",
    allow_short: Annotated[
        bool, typer.Option("--allow-short", help="Count places that are missing as misses.")
    ] = False,
    any_size: Annotated[bool, typer.Option("--any-size", help="Other sizes than the official ones; noted.")] = False,
    per_query: Annotated[bool, typer.Option("--per-query", help="Every query's values too, in the JSON.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Score anyone's ranking under a benchmark's protocol, and compare it with another.

    A ranking is a line for each query: {"query": "12060", "ranking": ["dev-1028-1-img1", ...]}, best first, with
    "scores" if ties are to be broken by the named policy, and with "task" where a benchmark has several (dress, shirt,
    toptee). TREC runs, .npz archives (queries, gallery, scores or order) and the submission files of CIRR and CIRCO are
    read as well. What cannot be judged is refused with file and line.

    Example: pocketlens-bench score cirr --ranking mine.jsonl --against theirs.jsonl --annotations CIRR"""
    from pocketlens_bench.protocols.protocol import Reading
    from pocketlens_bench.report.console_score import print_score
    from pocketlens_bench.score import measure

    check_out(out)
    reading = Reading(split=split, pictures=False, any_size=any_size)
    result = measure(
        _known(protocol), ranking, annotations, against=against, reading=reading, ties=ties, allow_short=allow_short,
        per_query=per_query, seed=seed,
    )  # fmt: skip
    tell(result, as_json, out, print_score)


@commands.command()
def protocols(
    protocol: Annotated[str, typer.Argument(metavar="[PROTOCOL]", help="One of them; default: all.")] = "",
    as_json: Json = False,
) -> None:
    """What each protocol counts: gallery, queries, exclusions, denominators, ties, and whose code it agrees with.

    Example: pocketlens-bench protocols circo"""
    from pocketlens_bench.report.console_score import print_protocol
    from pocketlens_bench.score import stated

    chosen = [_known(protocol)] if protocol else list(PROTOCOLS)
    of_set = {name: each for each, some in SETS.items() for name in some}
    found = [{"set": of_set[name], **stated(PROTOCOLS[name])} for name in chosen]
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        print_protocol(Console(), one)


def _known(name: str) -> str:
    if name not in PROTOCOLS:
        raise typer.BadParameter(f"{name}: no such protocol; there are {', '.join(PROTOCOLS)}")
    return name
