"""The connection of a session: its sign of life, and set up so that nobody's settings stand in its way.

It holds a session-level advisory lock, which the server frees when the process dies. What the lock can't see (a stopped
process, a link that is half open) the lease does. A pooler lends the server's connections to others in between, so that one
that was reached through it can hold no lock, and keeps no setting: there the lease alone speaks for the session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ...errors import StorageUnavailableError
from .checkout import PLANNER, STATEMENT_SECONDS, settings
from .links import Link
from .literals import plain

__all__ = ["USER_TIMEOUT", "ControlLink"]

#: Seconds after which the server is to give up a link whose other end is silent (rule 18). It looks at an idle one with each
#: probe, once a second; what was sent it repeats first; and long timers of the kernel are late. So the lock is free within
#: 6.25 s of the last sign of life, and within 6.4 s where a reply, or its receipt, was on its way.
USER_TIMEOUT = 5.6

_STATEMENT_SETTINGS = {
    "statement_timeout": f"{STATEMENT_SECONDS:.0f}s",
    "lock_timeout": "2s",
} | PLANNER
#: The lock is held by the server's end of the connection, so the server's end must notice a peer that is gone.
#: Keepalives alone took 22 s to free it. (No effect on a unix socket.)
_SETTINGS = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "tcp_user_timeout": f"{USER_TIMEOUT * 1000:.0f}ms",
    "tcp_keepalives_idle": "1s",
    "tcp_keepalives_interval": "1s",
    "tcp_keepalives_count": "3",
} | _STATEMENT_SETTINGS

_SET = """
SELECT set_config(item.name, item.value, false)
FROM unnest(%(names)s::text[], %(values)s::text[]) AS item (name, value)
WHERE current_setting(item.name, true) IS NOT NULL
"""
_LOCAL = settings("SET LOCAL", {name: f"'{value}'" for name, value in _STATEMENT_SETTINGS.items()})


class ControlLink:
    """One synchronous autocommit connection at a time, made by `connect`, used from one thread.

    `pooled`: whether it goes through a pooler, as is known when the first one is made.
    """

    def __init__(self, connect: Callable[[], Link], *, pooled: Callable[[], bool]) -> None:
        self._connect = connect
        self._pooled = pooled
        self.pooled = False
        #: Notifications are left out.
        self.hushed = False
        #: The connection, while there is one.
        self.conn: Link | None = None

    def open(self, patience: float) -> None:
        """A new connection, whose server may be silent for `patience` seconds."""
        self.abandon()
        self.hushed = False
        self.pooled = self._pooled()
        self.conn = self._connect()
        self.conn.patience = patience
        if not self.pooled:
            # idle_session_timeout came with PostgreSQL 14, transaction_timeout with 17
            self.fetch(_SET, names=list(_SETTINGS), values=list(_SETTINGS.values()))

    @contextmanager
    def kept_if_good(self) -> Iterator[None]:
        """Disconnect when this block raises: whoever waits for the next try has no connection to watch."""
        try:
            yield
        except BaseException:
            self.abandon()
            raise

    def lock(self, session: int) -> bool:
        """Try to take the session's lock; True also where there is none to be had.

        It may still be with our own last backend, which the server has not given up on yet, or with any other user of the
        database.
        """
        if self.pooled:
            return True
        ((locked,),) = self.fetch(
            "SELECT pg_try_advisory_lock(workers_lock_class(), %(session)s::integer)",
            session=session,
        )
        return bool(locked)

    def fetch(self, sql: str, **params: Any) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        conn, params = self._connected(), plain(params)
        if not self.pooled or conn.pgconn.transaction_status != TransactionStatus.IDLE:
            with conn.cursor(row_factory=tuple_row) as cursor:
                cursor.execute(sql, params)
                return cursor.fetchall() if cursor.description else []
        # several statements in one message are a transaction of their own
        with psycopg.ClientCursor(conn, row_factory=tuple_row) as cursor:
            cursor.execute(self._local() + sql, params)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def transaction(
        self, *, lock_timeout: str = "2s", statement_timeout: str = f"{STATEMENT_SECONDS:.0f}s"
    ) -> Iterator[None]:
        """A transaction, or a part of one."""
        with self._connected().transaction():
            if self.pooled:
                self._connected().execute(self._local().encode())
            self.fetch(
                "SELECT set_config('lock_timeout', %(lock)s, true), set_config('statement_timeout', %(statement)s, true)",
                lock=lock_timeout,
                statement=statement_timeout,
            )
            yield

    def hush(self, hushed: bool) -> None:
        """Leave out notifications, on this connection, or send them again."""
        self.hushed = hushed
        if not self.pooled:
            self.fetch("SET workers.notify = 'off'" if hushed else "RESET workers.notify")

    def _local(self) -> str:
        return _LOCAL + ("SET LOCAL workers.notify = 'off'; " if self.hushed else "")

    def be_patient(self, seconds: float) -> None:
        """From now on the server may be silent for so long."""
        self._connected().patience = seconds

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self.conn is not None and not self.conn.closed

    def abandon(self) -> None:
        """Disconnect without a word."""
        conn, self.conn = self.conn, None
        if conn is not None:
            conn.close()

    def _connected(self) -> Link:
        if self.conn is None:
            raise StorageUnavailableError("the control connection is closed")
        return self.conn
