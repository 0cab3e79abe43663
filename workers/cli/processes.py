"""`workers run --processes N`: a parent that watches over N children, each a `workers run` with a session of its own.

Parent and child hold the two ends of a socket. The child writes to it when it is ready; it sees the end of it when the
parent is gone, and then drains as after a signal. So nothing is left running when the parent is killed.

A child that ends without being told to is replaced, after a pause that grows while children do not live long. A child that
ends in order (its runner shuts down when the queue is empty) is not, and one that ends before any of them was ready will not
do better the next time: the others are ended, and its exit code is the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence

from ..log_aside import aside as logger
from ..telemetry import SessionStarted, subscribe

__all__ = ["Processes", "watched_by_parent"]

#: Where a child finds its end of the socket.
_VARIABLE = "WORKERS_PARENT_FD"
_FORWARDED = (signal.SIGTERM, signal.SIGINT)
#: A child that lived as long as this is replaced at once.
_LONG_LIFE = 60.0
_PAUSE_FIRST, _PAUSE_MOST = 0.5, 30.0


class Processes:
    """Keeps `number` children alive, each `python -m workers` with `arguments`."""

    def __init__(self, number: int, arguments: Sequence[str]) -> None:
        self._number = number
        self._command = [sys.executable, "-m", "workers", *arguments]
        self._children: set[asyncio.subprocess.Process] = set()
        self._any_ready = False
        self._stopping = asyncio.Event()
        self._codes = [0]

    async def run(self) -> int:
        """Until all children have ended; returns the highest of their exit codes.

        The first SIGTERM or SIGINT is passed on, and no child is replaced any more; so is every later one.
        """
        loop = asyncio.get_running_loop()
        for number in _FORWARDED:
            loop.add_signal_handler(number, self._pass_on, number)
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(1, self._number + 1):
                    group.create_task(self._keep(index))
        finally:
            for number in _FORWARDED:
                loop.remove_signal_handler(number)
        return max(self._codes)

    def _pass_on(self, number: signal.Signals) -> None:
        self._stop(number)
        logger.info("%s: passed on to %d processes", number.name, len(self._children))

    def _stop(self, number: signal.Signals) -> None:
        self._stopping.set()
        for child in self._children:
            _send(child, number)

    async def _keep(self, index: int) -> None:
        """One child after the other, until one ends that is not to be replaced."""
        pause = _PAUSE_FIRST
        while not self._stopping.is_set():
            begun = time.monotonic()
            code = await self._one()
            if code == 0 or self._stopping.is_set():
                self._codes.append(code)
                return
            how = (
                f"was ended by {_signal_name(-code)}"
                if code < 0
                else f"ended with exit code {code}"
            )
            if not self._any_ready:
                logger.error("process %d %s before any was ready: giving up", index, how)
                self._codes.append(code if code > 0 else 1)
                self._stop(signal.SIGTERM)
                return
            pause = 0.0 if time.monotonic() - begun > _LONG_LIFE else pause
            logger.error(
                "process %d %s; its jobs are rescued, another one follows in %g s",
                index,
                how,
                pause,
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(_PAUSE_MOST, max(_PAUSE_FIRST, 2 * pause))

    async def _one(self) -> int:
        """Start a child and wait for its end; returns its exit code."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                child = await asyncio.create_subprocess_exec(
                    *self._command,
                    env={**os.environ, _VARIABLE: str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C at a terminal goes to its whole group: they are told once, by us
                    start_new_session=True,
                )
            self._children.add(child)
            if self._stopping.is_set():
                _send(child, signal.SIGTERM)
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.add_reader(ours, self._is_ready, ours)
            try:
                return await child.wait()
            finally:
                loop.remove_reader(ours)
                self._children.discard(child)

    def _is_ready(self, ours: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(ours)
        with contextlib.suppress(OSError):
            self._any_ready = self._any_ready or bool(ours.recv(1))


@contextlib.contextmanager
def watched_by_parent() -> Iterator[None]:
    """In a child: tell the parent when the runner is ready, and shut down when the parent is gone. Else: nothing."""
    given = os.environ.pop(_VARIABLE, None)
    if given is None:
        yield
        return
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=int(given)) as parent:
        parent.setblocking(False)
        os.set_inheritable(parent.fileno(), False)

        def ready(event: SessionStarted) -> None:
            with contextlib.suppress(OSError):
                parent.send(b"+")

        def gone() -> None:
            loop.remove_reader(parent)
            logger.warning("the process that watches over this one is gone")
            os.kill(os.getpid(), signal.SIGTERM)

        loop.add_reader(parent, gone)
        try:
            with subscribe(ready, SessionStarted):
                yield
        finally:
            loop.remove_reader(parent)


def _send(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Not by its own method: that looks whether the child has ended, and takes its exit code away from who waits for it."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
