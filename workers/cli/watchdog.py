"""Ends a process in which a job holds the GIL and does not let go: no Python code of it can notice that, or say so."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

__all__ = ["watchdog"]

#: Seconds on top of the limit: on a busy machine a thread may have to wait for its turn.
_MARGIN = 3.0
_EVERY = 1.0


@contextlib.contextmanager
def watchdog(limit: float) -> Iterator[None]:
    """When no Python code has run for `limit` seconds and a little more, the process ends with status 1, its stacks on
    standard error.

    Only on Linux: elsewhere its clock may go on while the machine sleeps. A process that was stopped for so long ends as
    well; its jobs were given away long before.
    """
    if sys.platform != "linux" or sys.__stderr__ is None:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(
        target=_put_off,
        args=(limit + _MARGIN, sys.__stderr__, stop),
        name="workers-watchdog",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _put_off(seconds: float, file: TextIO, stop: threading.Event) -> None:
    """The end, as long as this thread gets to run."""
    while not stop.is_set():
        # it waits in a thread that needs no GIL
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        stop.wait(_EVERY)
    faulthandler.cancel_dump_traceback_later()
