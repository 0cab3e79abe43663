"""Error texts that any store can hold: no NUL, no lone surrogates, bounded, whatever the exception does when it is asked.

And without secrets: passwords of connection strings, and what a `hide` takes out.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from types import TracebackType

import anyio

from ..hiding import without_passwords
from .stand_in import stand_in

__all__ = ["MAX_ERROR", "Hide", "describe", "keep_passwords_out", "storable", "told"]

#: Characters kept of an error text: its beginning and, twice as much, its end, where the cause stands.
MAX_ERROR = 6000

#: Where the frames between a worker and the code of its job come from.
_ON_THE_WAY = tuple(os.path.dirname(path) + os.sep for path in (__file__, anyio.__file__))

#: Takes the secrets of a job out of a text.
Hide = Callable[[str], str]


def storable(text: str, hide: Hide | None = None) -> str:
    """`text` as PostgreSQL takes it, at most MAX_ERROR characters."""
    return _bounded(_clean(text, hide))  # before it is cut, perhaps in the middle of a secret


def _bounded(text: str) -> str:
    if len(text) > MAX_ERROR:
        head, tail = MAX_ERROR // 3, MAX_ERROR - MAX_ERROR // 3 - 40
        text = f"{text[:head]}\n[... {len(text) - head - tail} characters ...]\n{text[-tail:]}"
    text = text.replace("\x00", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe(error: BaseException, hide: Hide | None = None) -> str:
    """The traceback of `error` as storable text. Never raises."""
    return storable(_format(error), hide)


def told(error: BaseException, hide: Hide | None = None) -> tuple[str, BaseException]:
    """The traceback of `error`, and what may be shown as it: itself, unless there are secrets in it. Never raises."""
    text = _format(error)
    clean = _clean(text, hide)
    if clean == text:
        return _bounded(text), error
    return _bounded(clean), stand_in(error, lambda part: _clean(part, hide))


def _clean(text: str, hide: Hide | None) -> str:
    return without_passwords(text if hide is None else hide(text))


def _format(error: BaseException) -> str:
    try:
        frames = _of_the_job(error.__traceback__)
        return "".join(traceback.format_exception(type(error), error, frames, limit=-30))
    except BaseException as broken:  # an exception whose __str__, __cause__ or class misbehaves
        return f"{type(error).__name__} (its own text can't be had: {type(broken).__name__})"


def _of_the_job(frames: TracebackType | None) -> TracebackType | None:
    """`frames` without the library's own at the beginning, unless there are no others."""
    inner = frames
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_ON_THE_WAY):
        inner = inner.tb_next
    return inner or frames


def keep_passwords_out() -> None:
    """Of what is logged about runners: what a driver says, or a pool's own code, may quote a connection string."""
    logging.getLogger("workers").addFilter(_without_passwords)


def _without_passwords(record: logging.LogRecord) -> bool:
    try:
        text = record.getMessage()
        if (clean := without_passwords(text)) != text:
            record.msg, record.args = clean, ()
        if record.exc_info and (error := record.exc_info[1]) is not None:
            shown = told(error)[1]
            record.exc_info = (type(shown), shown, record.exc_info[2])
    except Exception:  # the handlers report what can't be formatted
        return True
    return True
