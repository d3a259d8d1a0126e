"""What the commands of `pocketlens-cloud` share: the application, its options, how errors are said.

Exit codes: 0 done, 1 done but something is wrong with what was found, 2 could not be done."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pocketlens_wire.errors import PocketlensError
from rich.console import Console

from pocketlens_cloud.gallery.payload import shown

app = typer.Typer(
    name="pocketlens-cloud",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""The cloud side of Pocketlens: index pictures into a gallery, answer composed queries over gRPC.

    [bold]Start here[/bold]

    pocketlens-cloud index ~/Pictures --gallery ./gallery

    pocketlens-cloud serve --gallery ./gallery

    Then, on the device: pocketlens-edge search photo.jpg --text "in red" --server 127.0.0.1:50551""",
)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

Bundle = Annotated[
    Path | None,
    typer.Option(help="Bundle folder (default: $POCKETLENS_BUNDLE, else the sample bundle).", show_default=False),
]
Precision = Annotated[
    str,
    typer.Option(help="Form of the tower to run: fp32, or int8 where the bundle has it (faster, nearly the same)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """One line for what a user can act on; no traceback."""
    try:
        yield
    except PocketlensError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        err.print("stopped; run the same command again to go on", markup=False)
        raise typer.Exit(130) from None


def fail(message: str) -> NoReturn:
    """Say why and exit with 2. Names in the message may be anyone's."""
    err.print("[bold red]error:[/bold red] ", end="")
    err.print(shown(message), markup=False, highlight=False)
    raise typer.Exit(2)
