"""Error texts that any store can hold: no NUL, no lone surrogates, bounded, whatever the exception does when it is asked."""

from __future__ import annotations

import os
from traceback import TracebackException
from types import TracebackType

import anyio

__all__ = ["MAX_ERROR", "describe", "storable"]

#: Characters kept of an error text: its beginning and, twice as much, its end, where the cause stands.
MAX_ERROR = 6000
#: Of what one exception says, and of how many notes: there is a traceback as well.
_MAX_PART, _MAX_NOTES = 4000, 100

#: Where the frames between a worker and the code of its job come from.
_ON_THE_WAY = tuple(os.path.dirname(path) + os.sep for path in (__file__, anyio.__file__))


def storable(text: str) -> str:
    """`text` as PostgreSQL takes it, at most MAX_ERROR characters."""
    text = _cut(text, MAX_ERROR).replace("\x00", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _cut(text: str, most: int) -> str:
    """The beginning and the end of what is longer."""
    if len(text) <= most:
        return text
    head, tail = most // 3, most - most // 3 - 40
    return f"{text[:head]}\n[... {len(text) - head - tail} characters ...]\n{text[-tail:]}"


def describe(error: BaseException) -> str:
    """The traceback of `error` as storable text. Never raises."""
    try:
        frames = _of_the_job(error.__traceback__)
        told = TracebackException(type(error), error, frames, limit=-30, compact=True)
        _shorten(told)
        text = "".join(told.format())
    except BaseException as broken:  # an exception whose __str__, __cause__ or class misbehaves
        text = f"{type(error).__name__} (its own text can't be had: {type(broken).__name__})"
    return storable(text)


def _of_the_job(frames: TracebackType | None) -> TracebackType | None:
    """`frames` without the library's own at the beginning, unless there are no others."""
    inner = frames
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_ON_THE_WAY):
        inner = inner.tb_next
    return inner or frames


def _shorten(told: TracebackException) -> None:
    """Cut the texts in it to what may be kept of them: to format 100 MB in short lines takes half a minute."""
    open_: list[TracebackException | None] = [told]
    while open_:
        if (part := open_.pop()) is None:
            continue
        open_ += [part.__cause__, part.__context__, *(part.exceptions or ())]
        # `_str` is what str(error) was; the others are a SyntaxError's
        for name in ("_str", "text", "msg"):
            if isinstance(text := vars(part).get(name), str):
                setattr(part, name, _cut(text, _MAX_PART))
        notes = getattr(part, "__notes__", None)
        if isinstance(notes, list | tuple):
            part.__notes__ = [_cut(str(note), _MAX_PART) for note in notes[:_MAX_NOTES]]
