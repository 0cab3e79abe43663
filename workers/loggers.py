"""The library's two loggers, for the runtime and for what becomes of jobs, kept fit for whatever else sets up logging."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

__all__ = ["JOBS", "NAME", "enable", "own_fields"]

NAME, JOBS = "workers", "workers.jobs"

_Info = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def enable() -> None:
    """`logging.config` disables every logger that there is and that it was not told of, unless it is asked not to."""
    for name in (NAME, JOBS):
        logging.getLogger(name).disabled = False


def own_fields(logger: logging.Logger) -> None:
    """Let the fields of `logger` replace those that an application's LogRecord factory has set under the same names.

    As logging has it, that would be a KeyError, wherever something is logged with such a field.
    """

    def make_record(
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: _Info | None,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        # its class's, at each call: others replace that
        make = partial(
            type(logger).makeRecord, logger, name, level, fn, lno, msg, args, exc_info, func
        )
        try:
            return make(extra, sinfo)
        except KeyError:
            record = make(None, sinfo)
            record.__dict__.update(extra or {})
            return record

    logger.makeRecord = make_record  # type: ignore[method-assign]  # as a subclass's, for a logger that others may have made


for _name in (NAME, JOBS):
    own_fields(logging.getLogger(_name))
