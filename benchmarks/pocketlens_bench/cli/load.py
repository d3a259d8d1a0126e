"""`pocketlens-bench load`: options and help."""

from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


@commands.command()
def load(
    bundle: Bundle = None,
    quick: Annotated[bool, typer.Option("--quick", help="Three rates, three seconds each: for a look.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each model run of the servers.")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Times under load, and how many questions a second a machine answers: tokens, and pictures uploaded.

    A closed loop finds out what the server can do; then questions arrive at 0.25 to 1.5 of it, at random times drawn in
    advance, from a process of its own. They are sent when they are due, answered or not, and timed from then: a server
    that stalls cannot hide it. Offered and achieved rate, failures by status and the asker's own lateness are reported.
    Takes about four minutes; leave the machine alone meanwhile.

    Example: pocketlens-bench load --out load.json"""
    from pocketlens_bench.load import FULL, QUICK, measure
    from pocketlens_bench.report.console_load import print_load

    check_out(out)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), sizes=QUICK if quick else FULL, threads=threads, seed=seed, on_progress=on_progress
        )
    tell(result, as_json, out, print_load)
