"""Connections that a server refuses until an idle one of ours is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg

__all__ = ["connected", "connected_async"]

T = TypeVar("T")

#: A server counts a connection that was closed until its process has ended: so long it is asked again, this often.
_SECONDS, _INTERVAL = 0.5, 0.01


def connected(
    connect: Callable[[], T], make_room: Callable[[], bool], *, is_made: bool = False
) -> T:
    """From `connect`. After a refusal `make_room` says whether it closed one; `is_made`: one was closed just before."""
    room = _Room(make_room, is_made)
    while True:
        try:
            return connect()
        except psycopg.OperationalError:
            if not room.may_come():
                raise
        time.sleep(_INTERVAL)


async def connected_async(
    connect: Callable[[], Awaitable[T]], make_room: Callable[[], bool], *, is_made: bool = False
) -> T:
    """The same, asynchronous."""
    room = _Room(make_room, is_made)
    while True:
        try:
            return await connect()
        except psycopg.OperationalError:
            if not room.may_come():
                raise
        await asyncio.sleep(_INTERVAL)


class _Room:
    """Counts from when one was first closed: a server that is down must not keep anybody for longer."""

    def __init__(self, make: Callable[[], bool], is_made: bool) -> None:
        self._make = make
        self._until = time.monotonic() + _SECONDS if is_made else None

    def may_come(self) -> bool:
        """After a refusal."""
        if self._make() and self._until is None:
            self._until = time.monotonic() + _SECONDS
        return self._until is not None and time.monotonic() < self._until
