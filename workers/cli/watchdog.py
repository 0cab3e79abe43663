"""Ends a process in which a job holds the GIL and does not let go: no Python code of it can notice that, or say so."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["watchdog"]

#: Seconds on top of the limit: on a busy machine a thread may have to wait for its turn.
_MARGIN = 3.0
_EVERY = 1.0


@contextlib.contextmanager
def watchdog(limit: float) -> Iterator[None]:
    """When no Python code has run for `limit` seconds and a little more, the process ends with status 1, its stacks on
    standard error. For the main thread.

    Only on Linux: elsewhere its clock may go on while the machine sleeps. Ctrl-Z stops it together with the process. One
    that was stopped by SIGSTOP for so long ends when it goes on; its jobs were given away long before.
    """
    if sys.platform != "linux" or sys.__stderr__ is None:
        yield
        return
    # jobs may close standard error itself
    file = os.dup(sys.__stderr__.fileno())
    dog = _Watchdog(limit + _MARGIN, file)
    previous = signal.signal(signal.SIGTSTP, dog.stop_process)
    dog.start()
    try:
        yield
    finally:
        dog.end()
        signal.signal(signal.SIGTSTP, previous or signal.SIG_DFL)
        os.close(file)


class _Watchdog:
    """Puts off the end, as long as its thread gets to run."""

    def __init__(self, seconds: float, file: int) -> None:
        self._seconds = seconds
        self._file = file
        self._over = threading.Event()
        self._arming = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="workers-watchdog", daemon=True)
        self.start = self._thread.start

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def stop_process(self, number: int, frame: FrameType | None) -> None:
        """What Ctrl-Z does."""
        if self._stopping:  # this handler has interrupted itself, and would wait for its own lock
            return
        self._stopping = True
        try:
            with self._arming:
                faulthandler.cancel_dump_traceback_later()
                os.kill(os.getpid(), signal.SIGSTOP)
                self._arm()
        finally:
            self._stopping = False

    def _run(self) -> None:
        while not self._over.is_set():
            with self._arming:
                self._arm()
            self._over.wait(_EVERY)
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        # it waits in a thread that needs no GIL
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)
