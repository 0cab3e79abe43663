"""Waiting with an eye on the connection: a link that breaks must be noticed at once, not at the next statement.

A free lock is a death after two looks of other runners, not a second apart. A runner that slept through the first half of
that would have to hurry; with this it takes its lock again within milliseconds.
"""

from __future__ import annotations

import selectors
import socket
import time
import weakref
from typing import Any

import psycopg

__all__ = ["LinkWatch"]

#: One that keeps nothing in the kernel: closing it would let go of the GIL, and a job that held it for the whole of a wait
#: would be somewhere else when the session thread looks who that was.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class LinkWatch:
    """Ends a wait early when it is poked, from any thread, or when the connection breaks."""

    def __init__(self) -> None:
        self._awake, self._poke = pair = socket.socketpair()
        weakref.finalize(self, _close, *pair)
        self._awake.setblocking(False)
        self._poke.setblocking(False)

    def poke(self) -> None:
        """End the wait that is on, or the next one."""
        try:
            self._poke.send(b"!")
        except OSError:  # full, which wakes as well; or closed
            pass

    def wait(self, conn: psycopg.Connection[Any] | None, seconds: float) -> None:
        """Wait at most `seconds`."""
        with _Selector() as selector:
            try:
                selector.register(self._awake, selectors.EVENT_READ)
            except ValueError:  # closed: the process ends, and a job in a thread has kept this one
                time.sleep(max(seconds, 0.0))
                return
            if conn is not None and not conn.closed:
                selector.register(conn.fileno(), selectors.EVENT_READ, conn)
            for key, _ in selector.select(max(seconds, 0.0)):
                if key.data is None:
                    self._drain()
                else:
                    _take_in(key.data)

    def _drain(self) -> None:
        try:
            while self._awake.recv(4096):
                pass
        except OSError:
            pass


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


def _take_in(conn: psycopg.Connection[Any]) -> None:
    """Read what the server sent unasked: a change of settings is harmless, its farewell closes the connection."""
    try:
        conn.pgconn.consume_input()
    except psycopg.OperationalError:
        conn.close()
