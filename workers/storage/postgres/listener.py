"""Wake-ups by LISTEN, on an asynchronous connection of its own. Losing it costs latency and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import psycopg
from psycopg import sql
from psycopg.pq import ConnStatus

from ...job import MAX_PRIORITY, MIN_PRIORITY
from ..base import Wake
from .checkout import translated
from .fitting import fetch_on
from .links import SETUP_SECONDS, AsyncLink

__all__ = ["PostgresListener"]

#: What a rescue puts before its message: see queries/rescue.sql.
_SUSPECTS = "suspects "


class PostgresListener:
    """One connection that LISTENs on the schema's channel. Not reusable after `close`."""

    def __init__(self, connect: Callable[[], Awaitable[AsyncLink]]) -> None:
        self._connect = connect
        self._conn: AsyncLink | None = None
        self._ended: asyncio.Future[None] | None = None
        self._fileno = -1
        self.address = ""

    async def open(self) -> None:
        """Connect and subscribe."""
        with translated():
            conn = self._conn = await self._connect()
            conn.patience = SETUP_SECONDS
            # a statement that is cancelled again and again is no clean end: the driver would warn of it
            with anyio.CancelScope(shield=True):
                ((channel,),) = await fetch_on(conn, "SELECT workers_channel()", {})
                await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            conn.patience = None  # there may be nothing to hear all day
            self.address = f"probe {conn.info.backend_pid}"

    async def listen(self, heard: Callable[[Wake | None], None]) -> None:
        """Tell `heard` of wake-ups as they come; None is the answer to a probe. Raises when the connection is lost.

        What came together with the reply to LISTEN is left out: whoever begins to listen looks at everything anyway.

        The loop calls when there is something to read. (The driver's `notifies` would wake a task first, and takes the
        connection off the loop and puts it back each time: a good part of the way from a notification to its job.)
        """
        conn = self._conn
        if conn is None:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        with translated():
            pgconn, encoding = conn.pgconn, conn.info.encoding

            def read() -> None:
                try:
                    pgconn.consume_input()
                    while message := pgconn.notifies():
                        self._pass_on(message.extra.decode(encoding), heard)
                    # what can't be a message makes libpq close the socket, without a word
                    if pgconn.status != ConnStatus.OK:
                        raise psycopg.OperationalError("the connection is lost")
                except Exception as error:
                    self._deafen()
                    if not ended.done():
                        ended.set_exception(error)

            self._fileno = pgconn.socket
            loop.add_reader(self._fileno, read)
            self._ended = ended
            try:
                await ended
            finally:
                self._deafen()

    def _pass_on(self, payload: str, heard: Callable[[Wake | None], None]) -> None:
        if payload == self.address:
            heard(None)
        elif not payload.startswith("probe "):
            heard(_parse(payload))

    def _deafen(self) -> asyncio.Future[None] | None:
        """Read no more, before the connection is closed: the number of its socket may be another one's then. Returns what
        `listen` waits for."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.get_loop().remove_reader(self._fileno)
        return ended

    async def close(self) -> None:
        """Disconnect."""
        ended = self._deafen()
        if ended is not None and not ended.done():
            ended.set_result(None)
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()


def _parse(payload: str) -> Wake:
    """A Wake from "position priority queue", maybe after "suspects"; whatever else someone sends wakes everybody."""
    rest = payload.removeprefix(_SUSPECTS)
    suspects = rest != payload
    position, _, rest = rest.partition(" ")
    priority, _, queue = rest.partition(" ")
    try:
        wake = Wake(queue, int(priority), int(position), suspects=suspects)
    except ValueError:
        return Wake()
    # a hint beyond the columns' types would make every claim from it an error
    known = MIN_PRIORITY <= wake.priority <= MAX_PRIORITY and 0 <= wake.position < 2**63
    return wake if known else Wake()
