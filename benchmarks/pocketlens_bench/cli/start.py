"""`pocketlens-bench start`: options and help."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, check_out, commands, named_bundle, progress, tell


@commands.command()
def start(
    bundle: Bundle = None,
    binary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            show_default=False,
            help="Also measure this self-contained program, as `make edge-binary` packs it.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=5, help="Processes started of each kind, by turns.")] = 30,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """How long one query's whole process takes until the request is sent, and how much memory.

    Starts `pocketlens-edge search` anew for each round, as a user does, against a server that notes when it is asked;
    then tells which library and which step the time goes to. Leave the machine alone meanwhile.

    Example: pocketlens-bench start --binary dist/pocketlens-edge/pocketlens-edge"""  # fmt: skip
    from pocketlens_bench.report.console_start import print_start
    from pocketlens_bench.start import measure

    check_out(out)
    with progress() as on_progress:
        result = measure(named_bundle(bundle), rounds=rounds, binary=binary, on_progress=on_progress)
    tell(result, as_json, out, print_start)
