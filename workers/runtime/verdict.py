"""What it means that an attempt ended by an exception, whatever that exception does when somebody looks at it.

Its class decides, by type(): an exception may lie about `__class__`, or raise when it is asked for anything.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import Cancel, Discard, Snooze, StorageUnavailableError
from ..lifecycle import Cancelled, Crashed, Discarded, Failed, Interrupted, Outcome, Snoozed
from .attempt import Attempt, Fenced
from .failure import Hide, describe, storable, told

__all__ = ["NoThread", "Stopped", "TooManyCrashes", "Undecodable", "outcome_of"]

#: A job whose code could not begin, for want of a transaction or a thread, is tried again in 5 s. Nothing is counted, or
#: forgotten: it has not shown that it kills no process.
_NOT_BEGUN = Snoozed(5.0, begun=False)


#: What a cancellation was that nobody here asked for: of the task, which counts those, or of something else.
_ITSELF = "the job cancelled the task it ran in"
_SOMETHING = "something that the job waited for was cancelled"


class TooManyCrashes(Exception):  # noqa: N818
    """Raised before a job that killed its process too often would run again."""


class Undecodable(Exception):  # noqa: N818
    """Raised before a job that can't be decoded would run."""


class NoThread(Exception):  # noqa: N818
    """Raised where the system gave a job's code no thread to run in."""


class Stopped(Exception):  # noqa: N818
    """Raised where a stopped job would have gone on, or committed."""


def outcome_of(error: BaseException, attempt: Attempt, *, closing: bool) -> Outcome | Fenced:
    """The outcome of an attempt that raised `error`. `closing`: the event loop is. Raises nothing.

    Sets `attempt.spoiled` for a cancellation that nobody here asked for.
    """
    try:
        return _outcome_of(error, attempt, closing)
    except BaseException:
        return Failed(*told(error, attempt.hide))


def _outcome_of(error: BaseException, attempt: Attempt, closing: bool) -> Outcome | Fenced:
    """A job that was stopped may still say what shall become of it, not that it failed."""
    kind, verdict, hide = type(error), attempt.verdict(), attempt.hide
    if isinstance(verdict, Fenced):
        return verdict
    if issubclass(kind, Fenced):
        return Fenced()
    # classes derived from these may have forgotten to initialise them
    if issubclass(kind, Cancel):
        return Cancelled(_text_of(error, hide, "reason"))
    if issubclass(kind, Discard):
        reason = _text_of(error, hide, "reason") or "discarded by the job"
        return Discarded(reason, describe(error, hide))
    if issubclass(kind, Snooze) and isinstance(delay := getattr(error, "seconds", None), float):
        return Snoozed(delay)
    if issubclass(kind, TooManyCrashes):
        return Crashed()
    if issubclass(kind, Undecodable):
        cause = error.__cause__
        return Discarded(_text_of(error, hide), None if cause is None else describe(cause, hide))
    not_begun = attempt.scope is None
    if isinstance(verdict, Failed):
        return _NOT_BEGUN if not_begun else _overdue(verdict, error, hide)
    if verdict is not None:
        return verdict
    if not_begun and issubclass(kind, StorageUnavailableError | NoThread):
        return _NOT_BEGUN
    if issubclass(kind, asyncio.CancelledError):
        if closing:
            return Interrupted("the event loop is closing")
        attempt.spoiled = attempt.task.cancelling() > 0
        return Failed(*told(error, hide, words=_ITSELF if attempt.spoiled else _SOMETHING))
    return Failed(*told(error, hide))


def _overdue(verdict: Failed, error: BaseException, hide: Hide | None) -> Failed:
    """Of a job that ran out of time, with where it was then: `error` is what it made of being stopped."""
    if issubclass(type(error), Stopped):  # nothing: that is our own
        return verdict
    text, shown = told(error, hide, words=verdict.error)
    if verdict.exception is not None:
        verdict.exception.__cause__ = shown
    return Failed(text, verdict.exception)


def _text_of(error: BaseException, hide: Hide | None, attribute: str | None = None) -> str:
    """The error, or one of its attributes, as text that can be stored; empty where there is none."""
    found: Any = error
    try:
        if attribute is not None:
            found = getattr(error, attribute, "")
        return storable(str(found), hide)
    except BaseException:
        return f"(a {type(found).__name__} whose text can't be had)"
