"""Error texts that any store can hold: no NUL, no lone surrogates, bounded, whatever the exception does when it is asked.

And without secrets: passwords of connection strings, and what a `hide` takes out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from traceback import TracebackException
from types import TracebackType

import anyio

from ..hiding import without_passwords
from .stand_in import stand_in

__all__ = ["MAX_ERROR", "Hide", "describe", "keep_passwords_out", "storable", "told"]

#: Characters kept of an error text: its beginning and, twice as much, its end, where the cause stands.
MAX_ERROR = 6000
#: Of what one exception says, and of how many notes: there is a traceback as well.
_MAX_PART, _MAX_NOTES = 4000, 100

#: Of a longer text the middle is left out before anybody looks for secrets in it. Far more than is kept in the end.
_MOST_READ = 1_000_000
#: Where the frames between a worker and the code of its job come from.
_ON_THE_WAY = tuple(os.path.dirname(path) + os.sep for path in (__file__, anyio.__file__))

#: Takes the secrets of a job out of a text.
Hide = Callable[[str], str]


def storable(text: str, hide: Hide | None = None) -> str:
    """`text` as PostgreSQL takes it, at most MAX_ERROR characters."""
    return _bounded(_clean(text, hide))  # before it is cut, perhaps in the middle of a secret


def _bounded(text: str) -> str:
    text = _cut(text, MAX_ERROR).replace("\x00", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _cut(text: str, most: int) -> str:
    """The beginning and the end of what is longer."""
    if len(text) <= most:
        return text
    head, tail = most // 3, most - most // 3 - 40
    return f"{text[:head]}\n[... {len(text) - head - tail} characters ...]\n{text[-tail:]}"


def describe(error: BaseException, hide: Hide | None = None) -> str:
    """The traceback of `error` as storable text. Never raises."""
    return _bounded(_format(error, lambda text: _clean(text, hide))[0])


def told(
    error: BaseException, hide: Hide | None = None, *, words: str | None = None
) -> tuple[str, BaseException]:
    """The traceback of `error`, after our own `words`, and what may be shown as it: itself, unless there are secrets in it,
    or so much text that nobody looks for them there, or it does not let itself be looked at. Never raises."""
    changed = False

    def clean(text: str) -> str:
        nonlocal changed
        found = _clean(text, hide)
        changed = changed or found != text
        return found

    text, seen = _format(error, clean)
    shown = error if seen and not changed else stand_in(error, lambda part: _clean(part, hide))
    return _bounded(text if words is None else f"{words}\n{text}"), shown


def _clean(text: str, hide: Hide | None) -> str:
    text = _cut(text, _MOST_READ)
    return without_passwords(text if hide is None else hide(text))


def _format(error: BaseException, clean: Hide) -> tuple[str, bool]:
    """Its traceback, and whether that is all that it says."""
    try:
        frames = _of_the_job(error.__traceback__)
        formatted = TracebackException(type(error), error, frames, limit=-30, compact=True)
        _shorten(formatted, clean)
        return clean("".join(formatted.format())), True
    except BaseException as broken:  # an exception whose __str__, __cause__ or class misbehaves
        name = type(error).__name__
        return f"{name} (its own text can't be had: {type(broken).__name__})", False


def _of_the_job(frames: TracebackType | None) -> TracebackType | None:
    """`frames` without the library's own at the beginning, unless there are no others."""
    inner = frames
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_ON_THE_WAY):
        inner = inner.tb_next
    return inner or frames


def _shorten(formatted: TracebackException, clean: Hide) -> None:
    """Cut the texts in it to what may be kept of them: to format 100 MB in short lines takes half a minute."""
    open_: list[TracebackException | None] = [formatted]
    while open_:
        if (part := open_.pop()) is None:
            continue
        open_ += [part.__cause__, part.__context__, *(part.exceptions or ())]
        # `_str` is what str(error) was; the others are a SyntaxError's
        for name in ("_str", "text", "msg"):
            if isinstance(text := vars(part).get(name), str):
                setattr(part, name, _cut(clean(text), _MAX_PART))
        notes = getattr(part, "__notes__", None)
        if isinstance(notes, list | tuple):
            part.__notes__ = [_cut(clean(str(note)), _MAX_PART) for note in notes[:_MAX_NOTES]]


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
