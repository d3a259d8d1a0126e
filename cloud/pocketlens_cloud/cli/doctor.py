"""`pocketlens-cloud doctor`: findings, one a line."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pocketlens_cloud.cli.root import AsJson, Bundle, app, out, plain_errors


@app.command()
def doctor(
    bundle: Bundle = None,
    gallery: Annotated[Path | None, typer.Option(help="Also examine this gallery.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Prove the bundle (and a gallery) on this machine.

    Checks every hash, replays the bundle's golden vectors through the real towers and heads, names the
    execution provider and the versions. Exit code 1 if anything is not as it should be.

    [bold]Example[/bold]

    pocketlens-cloud doctor --gallery ./gallery
    """
    with plain_errors():
        from pocketlens_wire.bundle import default_bundle

        from pocketlens_cloud.doctor import examine

        findings = []
        for finding in examine(bundle or default_bundle(), gallery):
            findings.append(finding)
            if not as_json:
                mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
                out.print(mark, end=" ")
                out.print(f"{finding.what}: {finding.detail}", markup=False, highlight=False)
        if as_json:
            out.print_json(json.dumps([asdict(finding) for finding in findings]))
        if not all(finding.ok for finding in findings):
            raise typer.Exit(1)
