"""`pocketlens-cloud config`: what `serve` would run with, and why."""

import json
from dataclasses import asdict
from typing import Any, cast

import typer

from pocketlens_cloud.cli.root import AsJson, app, out
from pocketlens_cloud.cli.settings import effective


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    options_metavar="[OPTIONS OF SERVE]",
)
def config(context: typer.Context, as_json: AsJson = False) -> None:
    """Print each option of serve, its value, and where that comes from.

    Takes the options of serve. What is not on the command line comes from the environment (POCKETLENS_SERVE_PORT for
    --port), then from the file of --config, then it is the default. Nothing is opened; secrets are masked. A name
    that is none is refused with the nearest that is.

    [bold]Examples[/bold]

    pocketlens-cloud config --config serve.toml

    pocketlens-cloud config --gallery ./gallery --port 8443 --json
    """
    group = cast(Any, typer.main.get_command(app))
    with group.commands["serve"].make_context("config", list(context.args), parent=context.parent) as asked:
        settings = effective(asked)
    if as_json:
        out.print_json(json.dumps([asdict(each) for each in settings], default=str))
        return
    width = max(len(each.name) for each in settings)
    for each in settings:
        said = "-" if each.value is None else str(each.value)
        out.print(f"{each.name:<{width}}  {said}  ({each.source})", markup=False, highlight=False)
