"""Wake-ups by LISTEN, on an asynchronous connection of its own. Losing it costs latency and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
from psycopg import sql

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

    async def __aiter__(self) -> AsyncIterator[Wake | None]:
        """Wake-ups as they come; None is the answer to a probe."""
        conn = self._conn
        if conn is None:
            return
        with translated():
            async for message in conn.notifies():
                if message.payload == self.address:
                    yield None
                elif not message.payload.startswith("probe "):
                    yield _parse(message.payload)

    async def close(self) -> None:
        """Disconnect."""
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
