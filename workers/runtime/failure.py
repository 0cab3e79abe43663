"""Error texts that any store can hold: no NUL, no lone surrogates, bounded, whatever the exception does when it is asked."""

from __future__ import annotations

import os
import traceback
from types import TracebackType

import anyio

__all__ = ["MAX_ERROR", "describe", "storable"]

#: Characters kept of an error text: its beginning and, twice as much, its end, where the cause stands.
MAX_ERROR = 6000

#: Where the frames between a worker and the code of its job come from.
_ON_THE_WAY = tuple(os.path.dirname(path) + os.sep for path in (__file__, anyio.__file__))


def storable(text: str) -> str:
    """`text` as PostgreSQL takes it, at most MAX_ERROR characters."""
    if len(text) > MAX_ERROR:
        head, tail = MAX_ERROR // 3, MAX_ERROR - MAX_ERROR // 3 - 40
        text = f"{text[:head]}\n[... {len(text) - head - tail} characters ...]\n{text[-tail:]}"
    text = text.replace("\x00", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe(error: BaseException) -> str:
    """The traceback of `error` as storable text. Never raises."""
    try:
        frames = _of_the_job(error.__traceback__)
        text = "".join(traceback.format_exception(type(error), error, frames, limit=-30))
    except BaseException as broken:  # an exception whose __str__, __cause__ or class misbehaves
        text = f"{type(error).__name__} (its own text can't be had: {type(broken).__name__})"
    return storable(text)


def _of_the_job(frames: TracebackType | None) -> TracebackType | None:
    """`frames` without the library's own at the beginning, unless there are no others."""
    inner = frames
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_ON_THE_WAY):
        inner = inner.tb_next
    return inner or frames
