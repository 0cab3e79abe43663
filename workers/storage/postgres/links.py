"""The engine's own connections: they wait no longer for a silent server than they are told to, and a fork lets go of them.

A link can be half open: the peer, or a firewall between, has forgotten it, and nobody says so. Then whoever waits for a
reply waits for ever. A server that said nothing for `patience` seconds counts as lost, and the link is closed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.abc import PQGen
from psycopg.pq.abc import PGconn

__all__ = ["SETUP_SECONDS", "AsyncLink", "Link", "SilentLinkError"]

T = TypeVar("T")

#: How long a link is waited for at each statement while it is being set up.
SETUP_SECONDS = 5.0
#: The driver looks up from its waiting this often, as by default.
_INTERVAL = 0.1
#: The same for one that may wait all day, on an event loop, which is interrupted without that.
_LONG_INTERVAL = 60.0


class SilentLinkError(psycopg.OperationalError):
    """The server did not answer in time; the connection was closed, what became of the statement is unknown."""


class Link(psycopg.Connection[Any]):
    """A synchronous connection whose server may be silent for `patience` seconds at a time; None: for ever."""

    patience: float | None = SETUP_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _links.add(self)

    def wait(self, gen: PQGen[T], interval: float = _INTERVAL, timeout: float | None = None) -> T:
        """As the driver's, which every statement goes through."""
        if self.patience is not None:
            gen = _impatient(gen, self.pgconn, self.patience)
        return super().wait(gen, interval, timeout)


class AsyncLink(psycopg.AsyncConnection[Any]):
    """The same, asynchronous."""

    patience: float | None = SETUP_SECONDS
    #: What the pool does to each of its connections, to be done again when this one was reset.
    configure: Callable[[AsyncLink], Awaitable[None]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _links.add(self)

    async def wait(
        self, gen: PQGen[T], interval: float = _INTERVAL, timeout: float | None = None
    ) -> T:
        """As the driver's, which every statement goes through."""
        if self.patience is not None:
            gen = _impatient(gen, self.pgconn, self.patience)
        elif timeout is None:
            interval = _LONG_INTERVAL
        return await super().wait(gen, interval, timeout)


def _impatient(gen: PQGen[T], pgconn: PGconn, seconds: float) -> PQGen[T]:
    """`gen`, in which the connection is lost when the server says nothing for `seconds`.

    What has arrived counts, however late this thread comes to look for it.
    """
    deadline = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            if ready := (yield wanted):
                deadline = time.monotonic() + seconds
            elif time.monotonic() >= deadline:
                pgconn.finish()
                # into it: there the driver knows what to do about a lost connection
                gen.throw(SilentLinkError(f"the server has said nothing for {seconds:g} s"))
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


# ------------------------------------------------------------------------------------------------------------------ forks

_links: WeakSet[Link | AsyncLink] = WeakSet()


def _let_go() -> None:
    """In a forked child: a socket that it keeps open would keep the runner's lock and the rows of its transactions held,
    however dead the runner is."""
    null = os.open(os.devnull, os.O_RDWR)
    for link in list(_links):
        with contextlib.suppress(psycopg.Error, OSError):
            # not closed: its number would go to some file of the child's, for the driver to write to and to close
            os.dup2(null, link.pgconn.socket, inheritable=False)
    os.close(null)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)
