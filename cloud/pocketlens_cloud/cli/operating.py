"""What operators give `serve`: options for figures, health, the log and the end, and what they mean."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_cloud.cli.root import fail, out
from pocketlens_cloud.cli.settings import Settings, read_config

if TYPE_CHECKING:
    from pocketlens_cloud.compose import Composer
    from pocketlens_cloud.gallery.interface import Gallery
    from pocketlens_cloud.service import Service
    from pocketlens_cloud.serving.operations import Operations

_PANEL = "Operations"

MetricsAt = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Tell figures and health here over HTTP, for machines.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
InsecureMetrics = Annotated[
    bool,
    typer.Option(
        "--insecure-metrics",
        help="Allow a --metrics address others can reach: it asks nobody who they are.",
        rich_help_panel=_PANEL,
    ),
]
Reflection = Annotated[
    bool, typer.Option("--reflection", help="Tell the gRPC schema to who asks for it.", rich_help_panel=_PANEL)
]
DrainS = Annotated[
    float,
    typer.Option(min=0, help="Seconds between saying on SIGTERM that it goes, and going.", rich_help_panel=_PANEL),
]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.", rich_help_panel=_PANEL)]
LogFormat = Annotated[str, typer.Option(help="text, or json: an object a line.", rich_help_panel=_PANEL)]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        callback=read_config,
        help="TOML file with options, as in `port = 50551`.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


def start_log(asked: Settings, worker: int | None = None) -> None:
    from pocketlens_cloud.serving import logs

    if asked.log_level.upper() not in logging.getLevelNamesMapping():
        raise typer.BadParameter("use debug, info, warning or error", param_hint="--log-level")
    if asked.log_format not in logs.FORMATS:
        raise typer.BadParameter(f"use {' or '.join(logs.FORMATS)}", param_hint="--log-format")
    logs.configure(asked.log_level, asked.log_format, worker)


def address(text: str, option: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT as its two parts."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise typer.BadParameter(f"{text} is not HOST:PORT, as in 127.0.0.1:8080", param_hint=option)
    return host.strip("[]"), int(port)


def monitor_of(asked: Settings) -> tuple[str, int] | None:
    """Where figures are told. They tell nothing of what is asked, but how much, to anyone and in clear."""
    from pocketlens_cloud.serving.hosts import is_loopback

    if asked.metrics is None:
        return None
    host, port = address(asked.metrics, "--metrics")
    if not is_loopback(host) and not asked.insecure_metrics:
        fail(
            f"--metrics {asked.metrics} can be reached from other machines, without encryption and by anyone: say "
            "--insecure-metrics if it is meant so (inside a cluster, say), or listen on 127.0.0.1"
        )
    return host, port


def say_figures(asked: Settings, bound: int) -> None:
    """Where they are told."""
    host = (asked.metrics or "").rpartition(":")[0]
    out.print(f"figures on http://{host}:{bound}/metrics", markup=False, highlight=False)


def open_operations(
    asked: Settings, monitor: tuple[str, int] | None, service: "Service", composer: "Composer", gallery: "Gallery"
) -> "Operations":
    """Health, figures and traces of one server, put together."""
    from pocketlens_cloud.service import version
    from pocketlens_cloud.serving.canary import golden_canary
    from pocketlens_cloud.serving.operations import Operations
    from pocketlens_cloud.serving.traces import open_tracing

    mode = "tuned" if "tuned" in service.modes else "zero-shot"
    return Operations(
        service,
        golden_canary(asked.bundle_folder, composer.manifest, gallery, mode, asked.precision),
        tracing=open_tracing(version=version(), bundle=composer.manifest.name),
        monitor=monitor,
        on_monitor=lambda bound: say_figures(asked, bound),
        reflect=asked.reflection,
    )
