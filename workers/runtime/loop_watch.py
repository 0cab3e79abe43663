"""Whether the event loop still turns, as seen from another thread: one that stands still runs no job, and says nothing.

Code that holds the GIL stops that other thread as well. It finds out afterwards, by having slept for too long.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Protocol

__all__ = ["STALL_WARNING", "LoopWatch", "Stalled"]

#: Seconds after which a loop that stands still is worth a warning, long before it is given up.
STALL_WARNING = 3.0


class Stalled(Protocol):
    """Told, on the watching thread, how long the loop has stood still, and where."""

    def __call__(
        self, seconds: float, stack: str, *, limit: float, everything: bool = False
    ) -> None:
        """Once after STALL_WARNING, once after the limit. `everything`: all threads did, and go on by now."""


class LoopWatch:
    """Watches the loop of the thread that makes it. `post` runs a callback on that loop."""

    def __init__(
        self, post: Callable[[Callable[[], object]], None], stalled: Stalled, limit: float
    ) -> None:
        self._post = post
        self._stalled = stalled
        self._limit = limit
        self._thread = threading.get_ident()
        self._last_beat = time.monotonic()
        self._beat_pending = False
        self._warn_at = min(STALL_WARNING, limit)
        self._report_at = self._warn_at

    def look(self) -> None:
        """Look once; from any one thread, again and again."""
        now = time.monotonic()
        if not self._beat_pending:
            self._beat_pending, self._last_beat = True, now
            self._post(self._beat)
        elif now - self._last_beat > self._report_at:
            self._report_at = math.inf if self._report_at >= self._limit else self._limit
            self._stalled(now - self._last_beat, self._stack(), limit=self._limit)

    def overslept(self, seconds: float) -> None:
        """The watching thread has woken up so much later than it wanted to."""
        if seconds > self._warn_at:
            self._last_beat = time.monotonic()  # what it missed is not the loop's fault
            self._stalled(seconds, self._stacks(), limit=self._limit, everything=True)

    def _stacks(self) -> str:
        """Of all threads but this one, the loop's first: whoever held the GIL waits for it where that was."""
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        del frames[threading.get_ident()]
        return "".join(
            f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frames[ident]))}"
            for ident in sorted(frames, key=lambda ident: ident != self._thread)
        )

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread)
        return "(its thread is gone)" if frame is None else "".join(traceback.format_stack(frame))

    def _beat(self) -> None:
        self._beat_pending = False
        self._report_at = self._warn_at
