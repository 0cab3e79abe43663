"""Logging of `workers run`: one line a record, as text or JSON, with the fields of the job that it is about."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from ..current import current
from ..errors import WorkersError
from ..hiding import hiding, without_passwords
from ..loggers import JOBS, enable

__all__ = ["FORMATS", "LEVELS", "configure"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

#: Text lines end with these; JSON has all fields.
_SHOWN = ("queue", "attempt", "session")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(level: str | None, format: str | None) -> None:
    """Set up the root logger. What was not asked for is left alone where the application has handlers of its own."""
    enable()  # an application that has set up logging has disabled them, maybe without knowing
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
    running = current.get(None)
    if running is not None and not hasattr(record, "job_id"):
        job = running.handle
        record.job_id, record.job_type, record.queue = job.id, job.job_type, job.queue
        record.attempt, record.session = job.attempt, job._session
    return True


class _Text(logging.Formatter):
    """2026-01-31T12:00:00.000+00:00 INFO workers: text  queue=emails attempt=1 session=7"""

    def format(self, record: logging.LogRecord) -> str:
        fields = vars(record)
        text = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        names = ("job_id", "job_type", *_SHOWN) if record.name != JOBS else _SHOWN
        if shown := [f"{name}={fields[name]}" for name in names if name in fields]:
            text += "  " + " ".join(shown)
        for more in _details(self, record):
            text += "\n" + more
        return _clean(text)


class _Json(logging.Formatter):
    """One object a line: time, level, logger, message, the record's fields, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
        }
        entry |= {
            name: _cleaned(value) for name, value in vars(record).items() if name not in _STANDARD
        }
        if details := _details(self, record):
            entry["exception"] = _clean("\n".join(details))
        return json.dumps(entry, default=lambda value: _clean(str(value)))


def _clean(text: str) -> str:
    """Without passwords, and without what is marked in the payload of the job that logs it."""
    hide = hiding.get(None)
    return without_passwords(text if hide is None else hide(text))


def _cleaned(value: Any) -> Any:
    """The texts in what a record carries; what JSON does not have is left to be made a text."""
    match value:
        case str():
            return _clean(value)
        case dict():
            return {_clean(str(key)): _cleaned(part) for key, part in value.items()}
        case list() | tuple():
            return [_cleaned(part) for part in value]
        case _:
            return value


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
