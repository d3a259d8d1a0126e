"""`pocketlens-bench hostile`: options and help."""

from typing import Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, check_out, commands, named_bundle, progress, tell


@commands.command()
def hostile(
    against: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            show_default=False,
            help="A server that runs, your own: floods are among the cases. Default: one is started.",
        ),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", show_default=False, help="Only this case, as --list names it. Repeatable."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the checklist and try nothing.")] = False,
    bundle: Bundle = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Try a checklist of hostile inputs against a real server, and whether it is unharmed after each.

    Pictures, tokens, messages, words, HTTP/2 frames, keys, filters. Each case must end in the status that the list
    names; then the process must run, health must say SERVING, and a good question must be answered as before.

    Exit code 1 if a case fails. Against a server that runs already, cases that would need its keys or write to its
    gallery are left out. Needs pocketlens\\[bench].

    Example: pocketlens-bench hostile --case tokens-nan"""  # fmt: skip
    from pocketlens_wire.errors import PocketlensError

    check_out(out)
    try:
        from pocketlens_bench.hostile import CHECKLIST
    except ModuleNotFoundError as missing:
        raise PocketlensError(f"{missing.name} is not installed here: pip install 'pocketlens[bench]'") from missing
    from pocketlens_bench.hostile.run import tried
    from pocketlens_bench.report.console_hostile import print_checklist, print_hostile

    if unknown := set(case or []) - {each.id for each in CHECKLIST}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: --list names the cases", param_hint="--case")
    if list_:
        print_checklist(CHECKLIST)
        return
    with progress() as on_progress:
        result = tried(named_bundle(bundle), against=against, only=case or [], on_progress=on_progress)
    tell(result, as_json, out, print_hostile)
    if result["failed"] or result["not_tried"]:
        raise typer.Exit(1)
