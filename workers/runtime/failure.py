"""Error texts that any store can hold: no NUL, no lone surrogates, bounded, whatever the exception does when it is asked."""

from __future__ import annotations

import traceback

__all__ = ["MAX_ERROR", "describe", "storable"]

#: Characters kept of an error text: its beginning and, twice as much, its end, where the cause stands.
MAX_ERROR = 6000


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
        # the first frame is the library's own call of the job
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, frames, limit=-30))
    except Exception as broken:  # an exception whose __str__, __cause__ or class misbehaves
        text = f"{type(error).__name__} (its own text can't be had: {type(broken).__name__})"
    return storable(text)
