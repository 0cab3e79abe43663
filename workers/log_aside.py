"""Logging for those that may not wait: a handler whose pipe nobody reads, or whose peer hangs, never returns.

Whoever waits for it holds its lock, and everybody else who logs waits for that.
"""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context

from .loggers import own_fields

__all__ = ["Aside", "aside"]

#: Seconds that a record is waited for: nearly always it is out at once, and what comes next may be the end of the process.
_MOMENT = 0.5


class Aside(logging.Logger):
    """Logs as `logging.getLogger(name)` does, but in threads of its own; what one thread logs keeps its order."""

    # A thread for each record: they are few, and there is no queue to bound, and no thread to start, stop or lose in a fork.

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._logger = logging.getLogger(name)
        self._caller = threading.local()

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """Left to be seen: the answer may have to wait for a lock of logging's."""
        return True

    def handle(self, record: logging.LogRecord) -> None:
        """Hand it on; waits a moment at most, and not at all while an earlier one of this thread is stuck."""
        earlier: threading.Thread | None = getattr(self._caller, "latest", None)
        stuck = earlier is not None and earlier.is_alive()
        thread = threading.Thread(
            target=copy_context().run,
            args=[self._deliver, record, earlier],
            name="workers-log",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads can be had
            if not stuck:
                self._deliver(record, None)
            return
        self._caller.latest = thread
        if not stuck:
            thread.join(_MOMENT)

    def flush(self, seconds: float) -> None:
        """Wait that long at most for what this thread has logged."""
        latest: threading.Thread | None = getattr(self._caller, "latest", None)
        if latest is not None:
            latest.join(seconds)

    def _deliver(self, record: logging.LogRecord, earlier: threading.Thread | None) -> None:
        if earlier is not None:
            earlier.join()
        if self._logger.isEnabledFor(record.levelno):
            self._logger.handle(record)


#: The library's logger, for the session thread and for processes that are about to end.
aside = Aside("workers")
own_fields(aside)
