"""Idle connections of one kind, and who waits for one where the server gives no more. Usable from any thread."""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import psycopg

from .baseline import Baseline
from .links import AsyncLink, Link

__all__ = ["IDLE_SECONDS", "Kept", "Shelf", "close"]

L = TypeVar("L", Link, AsyncLink)

#: An idle connection is closed after as many seconds: firewalls forget it, and the server has none to waste.
IDLE_SECONDS = 60.0
#: So long after a refusal, with nobody of the same kind to wait for, those of the other kind go when they come back.
_HUNGRY_SECONDS = 5.0
#: After a refusal nobody else asks the server for so many seconds, as long as there is one in use to wait for.
_REFUSED_SECONDS = 1.0


@dataclass(slots=True)
class Kept(Generic[L]):
    """A connection that serves one job after the other."""

    link: L
    baseline: Baseline
    #: Whether it has served before.
    used: bool = False
    idle_since: float = field(default_factory=time.monotonic)


class Shelf(Generic[L]):
    """Whoever takes one says what became of it: `put`, or `lost`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Kept[L]] = []
        self._line: deque[Future[Kept[L] | None]] = deque()
        self._in_use = 0
        self._refused_at = self._hungry_until = float("-inf")
        self._closed = False

    def take(self) -> Kept[L] | None:
        """The one used last, if there is one that seems to be good."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                kept = self._idle.pop()
                self._in_use += 1
            if _is_good(kept):
                return kept
            self.lost(kept)

    def making(self) -> None:
        """A new one is being made: from now on it may come back."""
        with self._lock:
            self._in_use += 1

    def failed(self, error: BaseException) -> None:
        """It was not made."""
        with self._lock:
            self._in_use -= 1
            if isinstance(error, psycopg.OperationalError):
                self._refused_at = now = time.monotonic()
                if not self._in_use:
                    self._hungry_until = now + _HUNGRY_SECONDS
            while self._line and not self._in_use:  # nobody is left to wait for
                self._next(None)

    def made(self) -> None:
        """It was made."""
        self._hungry_until = float("-inf")

    @property
    def is_hungry(self) -> bool:
        """Whether the server refused one lately, and nobody has any that could come back."""
        return time.monotonic() < self._hungry_until

    def make_room(self) -> bool:
        """Close what has been idle for longest, for a connection of another kind; False when nothing is idle."""
        with self._lock:
            kept = self._idle.pop(0) if self._idle else None
        if kept is not None:
            close(kept.link)
        return kept is not None

    def ask_again(self) -> None:
        """The server may give another one now."""
        self._refused_at = float("-inf")

    @property
    def in_use(self) -> int:
        """How many are out and may come back."""
        return self._in_use

    @property
    def is_worth_asking(self) -> bool:
        """Whether the server may give another one: not while a refusal is fresh and there is one to wait for."""
        return not self._in_use or self._refused_at < time.monotonic() - _REFUSED_SECONDS

    def put(self, kept: Kept[L]) -> None:
        """Give back a clean one: it is for the first in line."""
        kept.used = True
        kept.idle_since = time.monotonic()
        with self._lock:
            if not self._closed:
                if not self._next(kept):
                    self._in_use -= 1
                    self._idle.append(kept)
                return
        self.lost(kept)

    def lost(self, kept: Kept[L]) -> None:
        """Close one: another may be made in its place."""
        close(kept.link)
        with self._lock:
            self._in_use -= 1
            self._refused_at = float("-inf")
            self._next(None)

    def _next(self, kept: Kept[L] | None) -> bool:
        """Tell the first in line; False when nobody waits."""
        while self._line:
            first = self._line.popleft()
            if first.set_running_or_notify_cancel():
                first.set_result(kept)
                return True
        return False

    async def wait_async(self, seconds: float) -> Kept[L] | None:
        """Wait for one; None when it may be worth while to make one, or the time is over."""
        waiting = self._line_up()
        if waiting is None:
            return None
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(waiting)
        except TimeoutError:
            return _leave(waiting)
        except asyncio.CancelledError:
            if (kept := _leave(waiting)) is not None:
                self.put(kept)
            raise

    def wait(self, seconds: float) -> Kept[L] | None:
        """The same, blocking."""
        waiting = self._line_up()
        if waiting is None:
            return None
        try:
            return waiting.result(seconds)
        except TimeoutError:
            return _leave(waiting)

    def _line_up(self) -> Future[Kept[L] | None] | None:
        """A place in the line; None when nobody has a connection to give back."""
        waiting: Future[Kept[L] | None] = Future()
        with self._lock:
            if not self._in_use or self._closed:
                return None
            self._line.append(waiting)
        return waiting

    def close_old(self) -> float | None:
        """Close what has been idle for long; returns in how many seconds the next one will have been."""
        self._close_idle(since := time.monotonic() - IDLE_SECONDS)
        with self._lock:
            left = [kept.idle_since for kept in self._idle]
        return min(left) - since if left else None

    def close_idle(self) -> None:
        """Close what is idle."""
        self._close_idle(float("inf"))

    def _close_idle(self, since: float) -> None:
        with self._lock:
            old = [kept for kept in self._idle if kept.idle_since <= since]
            self._idle = [kept for kept in self._idle if kept.idle_since > since]
        for kept in old:
            close(kept.link)

    def close(self) -> None:
        """Close what is idle, and keep nothing from now on."""
        self._closed = True
        self.close_idle()


def close(link: Link | AsyncLink) -> None:
    """Close `link`, of either kind: that never waits for the server."""
    link.pgconn.finish()


def _leave(waiting: Future[Kept[L] | None]) -> Kept[L] | None:
    """Leave the line; returns what was handed over in the same moment."""
    return None if waiting.cancel() else waiting.result()


def _is_good(kept: Kept[L]) -> bool:
    """Not too old, nor has the server said anything unasked: its farewell, most likely."""
    if kept.link.closed or kept.idle_since <= time.monotonic() - IDLE_SECONDS:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(kept.link.fileno(), selectors.EVENT_READ)
        return not selector.select(0)
