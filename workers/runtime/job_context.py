"""What is done in a job's own context, before its code and with it."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from .. import telemetry
from ..current import current
from ..hiding import hiding
from .attempt import Attempt

__all__ = ["begin", "furnish"]

logger = logging.getLogger("workers")

#: Where sniffio, if it is installed, is told which kind of loop runs.
_library: ContextVar[str | None] | None = None
with suppress(ImportError):
    import sniffio

    _library = sniffio.current_async_library_cvar


def begin(
    attempt: Attempt, payload: Any, context: Any
) -> tuple[Coroutine[Any, Any, Any], Any] | None:
    """To where it first waits: its coroutine and what it waits for. None: it has ended."""
    furnish(attempt)
    coroutine = payload.run(context)
    try:
        return coroutine, coroutine.send(None)
    except StopIteration:
        return None


def furnish(attempt: Attempt) -> None:
    """What is found in the job's own context."""
    current.set(attempt)
    if _library is not None and not attempt.type.is_async:
        # the context may say that of an event loop, and this is a thread without one
        _library.set(None)
    job = attempt.job
    if attempt.type.secrets and (hide := attempt.hide) is not None:
        hiding.set(hide)
        job = attempt.shown
    for hook in telemetry.job_context_hooks:
        try:
            hook(job)
        except Exception:
            logger.exception("a hook for job contexts failed")
