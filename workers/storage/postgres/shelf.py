"""Idle connections of one kind, and who waits for one where the server gives no more. Usable from any thread."""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import psycopg

from .baseline import Baseline
from .links import AsyncLink, Link

__all__ = ["IDLE_SECONDS", "Kept", "Shelf", "close"]

L = TypeVar("L", Link, AsyncLink)

#: An idle connection is closed after as many seconds: firewalls forget it, and the server has none to waste.
IDLE_SECONDS = 60.0
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
    """Whoever takes one says what became of it: `put`, or `lost`. What the other shelf of a pair has is missing here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._other: Shelf[Any] = self
        self._idle: list[Kept[L]] = []
        self._line: deque[Future[Kept[L] | bool]] = deque()
        self._in_use = 0
        self._refused_at = float("-inf")
        self._closed = False

    @classmethod
    def pair(cls) -> tuple[Shelf[Link], Shelf[AsyncLink]]:
        """Two that make room for each other."""
        one: Shelf[Link] = Shelf()
        two: Shelf[AsyncLink] = Shelf()
        one._other, two._other, two._lock = two, one, one._lock
        return one, two

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
            if not isinstance(error, psycopg.OperationalError):
                self._pass_on()
                return
            self._refused_at = time.monotonic()
            if not self._are_out:  # nobody is left to wait for
                for shelf in (self, self._other):
                    while shelf._next(False):
                        pass

    @property
    def _are_out(self) -> bool:
        return bool(self._in_use or self._other._in_use)

    @property
    def is_worth_waiting(self) -> bool:
        """Whether any are out, of either kind, that may come back."""
        return self._are_out and not self._closed

    @property
    def is_worth_asking(self) -> bool:
        """Whether the server may give another one: not while a refusal is fresh and there is one to wait for."""
        stale = self._refused_at < time.monotonic() - _REFUSED_SECONDS
        return stale or not self._are_out or bool(self._other._idle)

    def put(self, kept: Kept[L]) -> None:
        """Give back a clean one: it is for the first in line. Of the other line, if that has none to wait for."""
        kept.used = True
        kept.idle_since = time.monotonic()
        other = self._other
        with self._lock:
            if not self._closed and (other._in_use or not other._is_waited_for):
                if self._next(kept):
                    return
                if not other._is_waited_for:
                    self._in_use -= 1
                    self._idle.append(kept)
                    return
        self.lost(kept)

    def lost(self, kept: Kept[L]) -> None:
        """Close one: another may be made in its place."""
        close(kept.link)
        with self._lock:
            self._in_use -= 1
            self._pass_on()

    def _pass_on(self) -> None:
        """The place of one that is gone is for the first in line, who has it from now on."""
        lines = (self, self._other) if self._other._in_use else (self._other, self)
        for shelf in lines:
            if shelf._next(True):
                shelf._in_use += 1
                return
        self._refused_at = self._other._refused_at = float("-inf")

    def _next(self, what: Kept[L] | bool) -> bool:
        """Tell the first in line; False when nobody waits."""
        while self._line:
            first = self._line.popleft()
            if first.set_running_or_notify_cancel():
                first.set_result(what)
                return True
        return False

    @property
    def _is_waited_for(self) -> bool:
        return any(not waiting.cancelled() for waiting in self._line)

    async def wait_async(self, seconds: float) -> Kept[L] | bool:
        """Wait for one; True when there is room to make one, as if by `making`; False when there is none to wait for, or
        the time is over."""
        waiting = self._line_up()
        if waiting is None:
            return False
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(waiting)
        except TimeoutError:
            return _leave(waiting)
        except asyncio.CancelledError as error:
            if isinstance(found := _leave(waiting), Kept):
                self.put(found)
            elif found:
                self.failed(error)
            raise

    def wait(self, seconds: float) -> Kept[L] | bool:
        """The same, blocking."""
        waiting = self._line_up()
        if waiting is None:
            return False
        try:
            return waiting.result(seconds)
        except TimeoutError:
            return _leave(waiting)

    def _line_up(self) -> Future[Kept[L] | bool] | None:
        """A place in the line; None when nobody has a connection to give back, or one can be made room for."""
        waiting: Future[Kept[L] | bool] = Future()
        with self._lock:
            if not self._are_out or self._closed or self._idle or self._other._idle:
                return None
            self._line.append(waiting)
        return waiting

    def close_one(self) -> bool:
        """Close the one that has been idle for longest; False where none is."""
        with self._lock:
            if not self._idle:
                return False
            kept = self._idle.pop(0)
        close(kept.link)
        return True

    def make_room(self) -> bool:
        """The server gives no more: close an idle one of the other kind; False where none is."""
        return self._other.close_one()

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


def _leave(waiting: Future[Kept[L] | bool]) -> Kept[L] | bool:
    """Leave the line; returns what was handed over in the same moment."""
    return False if waiting.cancel() else waiting.result()


def _is_good(kept: Kept[L]) -> bool:
    """Not too old, nor has the server said anything unasked: its farewell, most likely."""
    if kept.link.closed or kept.idle_since <= time.monotonic() - IDLE_SECONDS:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(kept.link.fileno(), selectors.EVENT_READ)
        return not selector.select(0)
