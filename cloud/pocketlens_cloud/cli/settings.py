"""Where the options of `serve` come from: the command line, the environment, a file, their defaults; in this order.

Owns the file's form, the environment's names, and the refusal of names that are none. Types and ranges are the
options' own (serve.py): whatever the source, a value is read as on the command line."""

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperCommand

ENVIRONMENT: Final = "POCKETLENS_SERVE"  # and _ and the option's name, as in POCKETLENS_SERVE_PORT
MASK: Final = "********"
_WRITTEN: Final = "pocketlens_cloud.written"  # in a context: what the file calls each of its options
_SECRET: Final = re.compile(r"(^|_)(secret|password|api_key|token)$")
_SOURCES: Final = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `serve`, wherever they came from; what each means is said where it is declared."""

    gallery: Path | None
    bundle: Path | None
    host: str
    port: int
    threads: int
    precision: str
    runs: int | None
    workers: int
    remember: int
    ready_file: Path | None
    insecure_listen: bool
    tls_cert: Path | None
    tls_key: Path | None
    client_ca: Path | None
    keys: Path | None
    audit_log: str | None
    audit_searches: bool
    web: str | None
    pictures: Path | None
    writable: bool
    qdrant: str | None
    collection: str | None
    qdrant_grpc_port: int
    qdrant_key_file: Path | None
    qdrant_timeout_s: int
    qdrant_read_consistency: str | None
    metrics: str | None
    insecure_metrics: bool
    reflection: bool
    drain_s: float
    log_level: str
    log_format: str

    @property
    def bundle_folder(self) -> Path:
        """The bundle that was named, else the default one."""
        from pocketlens_wire.bundle import default_bundle

        return self.bundle or default_bundle()


@dataclass(frozen=True)
class Setting:
    """One option and where its value comes from: command line, environment, file or default."""

    name: str
    value: Any
    source: str


def read_config(context: typer.Context, file: Path | None) -> Path | None:
    """Callback of --config, which is read before every other option: take the file's values as defaults.

    Raises BadParameter for a file that cannot be read, and for a name, there or in the environment, that is none."""
    names = {str(each.name) for each in context.command.params} - {"config", "help"}
    _check_environment(names | {"config"})
    if file is not None:
        written = _written(file, names)
        context.default_map = {name: value for name, (_, value) in written.items()}
        context.meta[_WRITTEN] = {name: f"{key} in {file}" for name, (key, _) in written.items()}
    return file


class FromAnywhere(TyperCommand):
    """A command whose complaints about a value name where that stands, if it is not the command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _naming_source(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _naming_source(ctx):
            return super().invoke(ctx)


@contextmanager
def _naming_source(context: typer.Context) -> Iterator[None]:
    """Add the variable, or the file and its key, to a BadParameter that is about one option."""
    try:
        yield
    except typer.BadParameter as error:
        about = error.param or next((each for each in context.command.params if error.param_hint in each.opts), None)
        if about and (source := _source(context, str(about.name))):
            error.param_hint = f"'{about.opts[0]}' ({source})"
        raise


def _source(context: typer.Context, name: str) -> str:
    """Where an option's value stands; empty for the command line and for defaults."""
    source = context.get_parameter_source(name)
    if source and source.name == "ENVIRONMENT":
        return f"${ENVIRONMENT}_{name.upper()}"
    return context.meta.get(_WRITTEN, {}).get(name, "") if source and source.name == "DEFAULT_MAP" else ""


def effective(context: typer.Context) -> list[Setting]:
    """Every option with its value, secrets masked."""
    found: list[Setting] = []
    for each in context.command.params:
        name = str(each.name)
        if name == "help":
            continue
        source = context.get_parameter_source(name)
        value = context.params.get(name)
        if value and (_SECRET.search(name) or getattr(each, "hide_input", False)):
            value = MASK
        found.append(Setting(name.replace("_", "-"), value, _SOURCES.get(source.name if source else "", "default")))
    return found


def _written(file: Path, names: set[str]) -> dict[str, tuple[str, str]]:
    """Each option that the file names: as it stands there, and its value."""
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(f"{file}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _refused(f"{file}: is not TOML: {error}") from error
    written: dict[str, tuple[str, str]] = {}
    for key, value in told.items():
        name = key.replace("-", "_")
        if isinstance(value, list):
            raise _refused(f"{file}: {key} is a list; options are single values, as in `port = 50551`")
        if isinstance(value, dict):
            raise _refused(
                f"{file}: {key} is a table; the file is flat: options stand at its top, as in `port = 50551`"
            )
        if name not in names:
            raise _refused(f"{file}: {key} is no option of serve{_nearest(name, names)}")
        if name in written:
            raise _refused(f"{file}: {key} is named twice")
        written[name] = key, str(value)  # read as on the command line
    return written


def _check_environment(names: set[str]) -> None:
    known = {f"{ENVIRONMENT}_{name.upper()}" for name in names}
    for variable in os.environ:
        if variable.startswith(f"{ENVIRONMENT}_") and variable not in known:
            raise _refused(f"${variable} is no option of serve{_nearest(variable, known)}", "the environment")


def _nearest(name: str, names: set[str]) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.0)
    said = near[0] if near[0].startswith(ENVIRONMENT) else near[0].replace("_", "-")
    return f"; did you mean {said}?" if near else ""


def _refused(message: str, where: str = "--config") -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=where)
