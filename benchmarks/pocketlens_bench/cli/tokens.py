"""`pocketlens-bench tokens`: options and help."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


@commands.command()
def tokens(
    bundle: Bundle = None,
    student: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Device half of a student with another number of tokens; repeatable. Default: those shipped.",
            show_default=False,
        ),
    ] = None,
    gallery: Annotated[
        int | None,
        typer.Option(min=6000, help="Pictures in each gallery (default: 30,000).", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A sixth of the set: for a look, not for a report.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the cloud's models and of drawing (default: all cores).")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """How many tokens a picture needs (1, 2, 4, 8), in how many bits, at what bytes.

    One student per number of tokens, all taught by the same teacher with the same recipe, steps and pictures; each asks
    zero-shot with its tokens as f32, f16, int8, int4, and as int3 and int2, which the wire does not offer; int2 also
    with a better scale than the codec's. Three kinds of question: picture and words, picture alone, sketch alone. The
    galleries hold 30,000 pictures: among the 6,000 of `accuracy` the students stand too near the ceiling to be told
    apart. Bytes are those of the request message.

    Further students: pocketlens-train sibling, then pocketlens-export sibling.

    Example: pocketlens-bench tokens --out tokens.json"""
    from pocketlens_bench.report.console_tables import print_tokens
    from pocketlens_bench.token_table import FULL, QUICK, measure

    check_out(out)
    sizes = QUICK if quick else FULL
    if gallery is not None:
        sizes = replace(sizes, gallery=gallery, sketch_gallery=gallery)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), students=student or None, sizes=sizes, seed=seed,
            threads=threads, on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_tokens)
