"""`pocketlens-bench workers`: options and help."""

from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell


@commands.command()
def workers(
    qdrant: Annotated[str, typer.Option(metavar="URL", help="Qdrant server, by its HTTP address.")],
    collection: Annotated[str, typer.Option(metavar="NAME", help="Gallery on it: a live one, of this bundle.")],
    qdrant_grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Its gRPC port.")] = 6334,
    bundle: Bundle = None,
    count: Annotated[list[int] | None, typer.Option(min=1, help="Workers; again for each.  [default: 1, 2]")] = None,
    processors: Annotated[
        int | None, typer.Option(min=1, help="Processors for the server (default: all but the last two).")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Questions open at once.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one run of the text tower.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="One short turn each: for a look.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Questions a second of a server with one worker process, with two, and so on, in turns on the same processors.

    Words of 8 to 40 tokens, as in `serving`. The last processor asks. Searches do not reach Qdrant but are answered at
    once, on the processor before the last, so that the service is what is measured.

    Example: pocketlens-bench workers --qdrant http://127.0.0.1:6333 --collection shop --count 1 --count 2"""
    from pocketlens_bench.report.console_workers import print_workers
    from pocketlens_bench.workers import FULL, QUICK, Place, measure

    check_out(out)
    gallery = Place(url=qdrant, grpc_port=qdrant_grpc_port, name=collection)
    with progress() as on_progress:
        result = measure(
            named_bundle(bundle), gallery, counts=count or (1, 2), processors=processors, at_once=at_once,
            threads=threads, sizes=QUICK if quick else FULL, seed=seed, on_progress=on_progress,
        )  # fmt: skip
    tell(result, as_json, out, print_workers)
