"""What a log line looks like: text for people, JSON for programs, each with the id of the call it belongs to.

Words and tokens are logged nowhere: they tell what a person looked for. The only file that imports
pythonjsonlogger."""

import logging
from typing import Final

from pocketlens_cloud.serving.calls import CURRENT

FORMATS: Final = ("text", "json")
TEXT: Final = "%(asctime)s %(levelname)s %(name)s:%(mark)s %(message)s"


def configure(level: str, form: str, worker: int | None = None) -> None:
    """Log to stderr from `level` (debug, info, warning, error) on, as `form` (one of FORMATS) says. worker: its number.

    Where this process logs already, that stays as it is."""
    handler = logging.StreamHandler()
    handler.addFilter(WithCall(worker))
    handler.setFormatter(_json() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _json() -> logging.Formatter:
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, error (a traceback), and the extras."""
    from pythonjsonlogger import core
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "error"},
        timestamp="time",
        reserved_attrs=[*core.RESERVED_ATTRS, "mark"],
    )


class WithCall(logging.Filter):
    """Adds the worker's number and the current call's ids to a record; lets every record pass."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        call = CURRENT.get()
        mark = f" [{call.request_id}]" if call else ""
        if self._worker is not None:
            record.worker = self._worker
            mark = f" worker {self._worker}:{mark}"
        record.mark = mark
        if call:
            record.request_id = call.request_id
            if call.trace_id:
                record.trace_id = call.trace_id
        return True
