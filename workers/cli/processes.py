"""`workers run --processes N`: a parent that watches over N children, each a `workers run` with a session of its own.

Parent and child hold the two ends of a socket. The child says on it when it is ready, and when its runner has ended in
order; it sees the end of it when the parent is gone, and then drains as after a signal. So nothing is left running when
the parent is killed.

A child that ends without being told to by the parent is replaced, after a pause that grows while children do not live long;
whatever its exit code is, for a job may end it with 0, too. So is one that somebody else told to end, and one that can't be
started. Not replaced is a child whose runner shuts down when the queue is empty. One that ends before any of them was ready
will not do better the next time: the others are ended, and its exit code is the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from ..log_aside import aside as logger
from ..telemetry import SessionStarted, subscribe

__all__ = ["SAME_REQUEST", "Processes", "is_watched", "watched_by_parent"]

#: Seconds within which two SIGTERMs are one request to a child: a service manager may tell all processes of a service at
#: once (systemd does, unless it has `KillMode=mixed`), and the parent passes on what it was told.
SAME_REQUEST = 1.0

#: Where a child finds its end of the socket.
_VARIABLE = "WORKERS_PARENT_FD"
_FORWARDED = (signal.SIGTERM, signal.SIGINT)
#: What a child says: it is ready; its runner has ended in order, by itself, or because it was told to.
_READY, _EMPTY, _TOLD = b"+", b".", b"-"
#: A child that lived as long as this is replaced at once.
_LONG_LIFE = 60.0
_PAUSE_FIRST, _PAUSE_MOST = 0.5, 30.0


class Processes:
    """Keeps `number` children alive, each `python -m workers` with `arguments`; -P: no module of the current directory is
    in the way of this package or the standard library."""

    def __init__(self, number: int, arguments: Sequence[str]) -> None:
        self._number = number
        self._command = [sys.executable, "-P", "-m", "workers", *arguments]
        self._children: set[asyncio.subprocess.Process] = set()
        self._any_ready = False
        self._stopping = asyncio.Event()
        self._codes = [0]

    async def run(self) -> int:
        """Until all children have ended; returns the highest of their exit codes, where a death by a signal counts as 1.

        The first SIGTERM or SIGINT is passed on, and no child is replaced any more; every later one is passed on as SIGINT,
        which is never taken for the same request.
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
        self._stop(signal.SIGINT if self._stopping.is_set() else number)
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
            child = _Child()
            await self._one(child)
            if self._stopping.is_set() or child.found_nothing_left:
                level = logging.ERROR if child.counts_as else logging.INFO
                logger.log(level, "process %d %s", index, child.end)
                self._codes.append(child.counts_as)
                return
            if not self._any_ready:
                logger.error("process %d %s before any was ready: giving up", index, child.end)
                self._codes.append(child.counts_as or 1)
                self._stop(signal.SIGTERM)
                return
            pause = 0.0 if time.monotonic() - begun > _LONG_LIFE else pause
            level, then = logging.ERROR, "; its jobs are rescued, another one"
            if child.was_told:
                level, then = logging.WARNING, ", told to by somebody else; another one"
            elif child.code is None:
                then = "; another one"
            logger.log(level, "process %d %s%s follows in %g s", index, child.end, then, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(_PAUSE_MOST, max(_PAUSE_FIRST, 2 * pause))

    async def _one(self, child: _Child) -> None:
        """Start a process and wait for its end."""
        try:
            process, ours = await self._start()
        # no memory, no file descriptor, no thread to wait for it in: there may be some later
        except (OSError, RuntimeError) as error:
            child.error = error
            return
        self._children.add(process)
        if self._stopping.is_set():
            _send(process, signal.SIGTERM)
        loop = asyncio.get_running_loop()

        def hear() -> None:
            if not child.hear(ours):
                loop.remove_reader(ours)
            self._any_ready = self._any_ready or child.ready

        with ours:
            loop.add_reader(ours, hear)
            try:
                child.code = await process.wait()
            finally:
                loop.remove_reader(ours)
                self._children.discard(process)
            hear()  # what it said last may not have been read yet

    async def _start(self) -> tuple[asyncio.subprocess.Process, socket.socket]:
        """A process, and what it is heard by."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env={**os.environ, _VARIABLE: str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C at a terminal goes to its whole group: they are told once, by us
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return process, ours


class _Child:
    """What a child has said, and how it ended."""

    def __init__(self) -> None:
        self.said = b""
        #: Its exit code, or the negative number of a signal; None until it has ended, and if it could not be started.
        self.code: int | None = None
        self.error: Exception | None = None

    def hear(self, socket: socket.socket) -> bool:
        """Read what there is; whether there may be more to come."""
        try:
            words = socket.recv(64)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.said += words
        return bool(words)

    @property
    def ready(self) -> bool:
        return _READY in self.said

    @property
    def found_nothing_left(self) -> bool:
        """Whether it has ended because its queues were empty."""
        return self.code == 0 and _EMPTY in self.said

    @property
    def was_told(self) -> bool:
        """Whether it has ended in order because of a signal."""
        return self.code == 0 and _TOLD in self.said

    @property
    def counts_as(self) -> int:
        """What it adds to the parent's exit code when it is not replaced."""
        if self.code is None:
            return 1
        if self.code == 0 or -self.code in _FORWARDED:
            # before and after its runner such a signal ends it at once, and there is no job to be lost
            over = _EMPTY in self.said or _TOLD in self.said
            return 0 if over or not self.ready else 1
        return self.code if self.code > 0 else 1

    @property
    def end(self) -> str:
        """How it ended, as in "process 1 ..."."""
        if self.code is None:
            return f"could not be started ({self.error})"
        if self.code < 0:
            return f"was ended by {_signal_name(-self.code)}"
        if self.found_nothing_left:
            return "ended: its queues are empty"
        if self.was_told:
            return "ended in order"
        where = " in the middle of its work" if self.code == 0 and self.ready else ""
        return f"ended with exit code {self.code}{where}"


def is_watched() -> bool:
    """Whether this process is such a child, before it has begun to listen to its parent."""
    return _VARIABLE in os.environ


@contextlib.contextmanager
def watched_by_parent() -> Iterator[Callable[[bool], None]]:
    """In a child: tell the parent when the runner is ready, and shut down when the parent is gone. Else: nothing.

    Yields what is to be called when the runner has ended in order, with whether it was told to by a signal.
    """
    given = os.environ.pop(_VARIABLE, None)
    if given is None:
        yield lambda told: None
        return
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=int(given)) as parent:
        parent.setblocking(False)
        os.set_inheritable(parent.fileno(), False)

        def say(word: bytes) -> None:
            with contextlib.suppress(OSError):
                parent.send(word)

        def ready(event: SessionStarted) -> None:
            say(_READY)

        def gone() -> None:
            loop.remove_reader(parent)
            logger.warning("the process that watches over this one is gone")
            os.kill(os.getpid(), signal.SIGTERM)

        loop.add_reader(parent, gone)
        try:
            with subscribe(ready, SessionStarted):
                yield lambda told: say(_TOLD if told else _EMPTY)
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
