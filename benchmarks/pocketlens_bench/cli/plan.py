"""`pocketlens-bench plan`: options and help."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_bench.cli.root import Bundle, Json, Out, Seed, check_out, commands, named_bundle, progress, tell

if TYPE_CHECKING:
    from pocketlens_bench.plan import Assumed


@commands.command()
def plan(
    pictures: Annotated[float, typer.Option(min=1, help="Pictures in the gallery, as 1e9.")] = 1e7,
    rate: Annotated[float, typer.Option(min=0.01, help="Questions a second, as 1e5.")] = 1e3,
    form: Annotated[str, typer.Option(help="Vectors that searches walk: fp32, int8 or binary.")] = "int8",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", show_default=False, help="Another assumption: see docs/scale.md."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="Measured results (default: the checkout's)."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE", show_default=False, help="Make the tables of docs/scale.md anew; after a check, with it."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Hold the simulation to a real server, measured here, instead.")
    ] = False,
    bundle: Bundle = None,
    drawn: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", show_default=False, help="Check with a bundle of the size of this model of open_clip."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the check's text tower: fp32 or int8.")] = "fp32",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one run of the text tower, in the check.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A check of seconds: for a look.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """What a gallery's size and a rate of questions need: nodes, memory, network, times, money.

    From results measured on one machine; beyond a million pictures it is arithmetic and simulation, not measurement.

    --check serves a bundle for three minutes at five rates and prints the simulation, made of the bare parts' times,
    beside what was measured. Leave the machine alone meanwhile.

    Examples:

    pocketlens-bench plan --pictures 1e9 --rate 1e5 --form int8 --set replicas=3 --set node_price_h=1.5

    pocketlens-bench plan --check --out benchmarks/results/sample-plan.json --write docs/scale.md"""
    check_out(out)
    if check:
        _check(bundle, drawn, precision, threads, seed, quick=quick, as_json=as_json, out=out)
        if write is None:
            return
    from dataclasses import asdict

    from pocketlens_bench.plan import FORMS, Ask, Assumed, read_measured, times
    from pocketlens_bench.plan import plan as planned_for
    from pocketlens_bench.plan_page import refreshed
    from pocketlens_bench.report.console_plan import print_plan

    if form not in FORMS:
        raise typer.BadParameter(f"use {', '.join(FORMS)}", param_hint="--form")
    assumed = _assumed(Assumed(), set_ or [])
    measured = read_measured(results or _committed())
    if write:
        write.write_text(refreshed(write.read_text(encoding="utf-8"), measured, assumed), encoding="utf-8")
        return
    planned = planned_for(measured, assumed, Ask(pictures=pictures, questions_per_s=rate, form=form))
    result = {
        **asdict(planned),
        "breaks_first": planned.breaks_first,
        "believable": planned.believable,
        "times": times(measured, assumed, planned, seed=seed) if planned.believable else None,
        "assumed": asdict(assumed),
        "measured": [asdict(each) for each in measured.found()],
    }
    tell(result, as_json, out, print_plan)


def _check(
    bundle: Path | None, drawn: str | None, precision: str, threads: int, seed: int, *, quick: bool, as_json: bool,
    out: Path | None,
) -> None:  # fmt: skip
    from pocketlens_bench.plan_check import FULL, QUICK, check
    from pocketlens_bench.report.console_plan import print_check

    if drawn and bundle:
        raise typer.BadParameter("needs no --bundle", param_hint="--drawn")
    with progress() as on_progress:
        served = _drawn(drawn, seed) if drawn else named_bundle(bundle)
        sizes = QUICK if quick else FULL
        result = check(served, precision=precision, threads=threads, sizes=sizes, seed=seed, on_progress=on_progress)
    tell(result, as_json, out, print_check)


def _drawn(model: str, seed: int) -> Path:
    from pocketlens_bench.cli.scale import default_cache
    from pocketlens_bench.serving_making import drawn_bundle

    return drawn_bundle(model, default_cache() / "serving", seed=seed)


def _committed() -> Path:
    from pocketlens_bench.checkout import checkout

    root = checkout()
    if root is None:
        raise typer.BadParameter("name the folder of results: this is not run from a checkout, which holds some",
                                 param_hint="--results")  # fmt: skip
    return root / "benchmarks" / "results"


def _assumed(assumed: "Assumed", said: list[str]) -> "Assumed":
    """With what --set says, each of the default's own type."""
    from dataclasses import replace

    for each in said:
        name, _, text = each.partition("=")
        known = vars(assumed)
        if name not in known:
            raise typer.BadParameter(f"{name} is none; there are {', '.join(known)}", param_hint="--set")
        try:
            value = type(known[name])(text)
        except ValueError as error:
            raise typer.BadParameter(f"{each}: {text!r} is no number", param_hint="--set") from error
        if value <= 0:
            raise typer.BadParameter(f"{each}: must be more than 0", param_hint="--set")
        assumed = replace(assumed, **{name: value})
    return assumed
