"""Logging of `workers run`: one line a record, as text or JSON, with the fields of the job that it is about."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from ..current import current
from ..errors import WorkersError
from .command import without_secrets

__all__ = ["FORMATS", "LEVELS", "configure"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

#: Text lines end with these; JSON has all fields.
_SHOWN = ("queue", "attempt", "session")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(level: str | None, format: str | None) -> None:
    """Set up the root logger. What was not asked for is left alone where the application has handlers of its own."""
    root = logging.getLogger()
    if format is not None or not root.handlers:
        handler = logging.StreamHandler()
        handler.addFilter(_add_job)
        handler.setFormatter(_Json() if format == "json" else _Text())
        root.handlers[:] = [handler]
        root.setLevel(logging.INFO)
    if level is not None:
        root.setLevel(level.upper())


def _add_job(record: logging.LogRecord) -> bool:
    """What the code of a job logs carries the same fields as what is logged about it."""
    job = current.get(None)
    if job is not None and not hasattr(record, "job_id"):
        record.job_id, record.job_type, record.queue = job.id, job.job_type, job.queue
        record.attempt, record.session = job.attempt, job._session
    return True


class _Text(logging.Formatter):
    """2026-01-31T12:00:00.000+00:00 INFO workers: text  queue=emails attempt=1 session=7"""

    def format(self, record: logging.LogRecord) -> str:
        fields = vars(record)
        text = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        names = ("job_id", "job_type", *_SHOWN) if record.name != "workers.jobs" else _SHOWN
        if shown := [f"{name}={fields[name]}" for name in names if name in fields]:
            text += "  " + " ".join(shown)
        for more in _details(self, record):
            text += "\n" + more
        return without_secrets(text)


class _Json(logging.Formatter):
    """One object a line: time, level, logger, message, the record's fields, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if details := _details(self, record):
            entry["exception"] = without_secrets("\n".join(details))
        return json.dumps(entry, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _details(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """The traceback and the stack of a record that has them."""
    found = []
    if record.exc_info and record.exc_info[0] is not None and not _says_all(record):
        found.append(record.exc_text or formatter.formatException(record.exc_info))
    if record.stack_info:
        found.append(formatter.formatStack(record.stack_info))
    return found


def _says_all(record: logging.LogRecord) -> bool:
    """Whether the message tells what a user can do, and a traceback would only tell what the library was doing."""
    error = record.exc_info[1] if record.exc_info else None
    ours = record.name == "workers" and isinstance(error, WorkersError)
    return ours and not logging.getLogger().isEnabledFor(logging.DEBUG)
