"""What a connection was like before any job had it, and the way back there.

`RESET ALL` goes back to what the connection began with; what was set on it since, by a pool's `configure` or by ourselves,
is set again. DISCARD ALL would do more, but can't stand beside other statements; the plans that the driver has prepared
are worth keeping, and a DEALLOCATE that it does not see would leave it with names that mean nothing. So what the job has
prepared by SQL goes by name: the driver's own are not from SQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.adapt import AdaptersMap
from psycopg.rows import tuple_row

from .fitting import fetch_on

__all__ = ["Baseline"]

#: In the order in which they can be set: another session's user resets the role.
_IDENTITY = ("session_authorization", "role", "search_path")
_PROBE = """
SELECT name, setting FROM pg_settings WHERE source = 'session'
UNION ALL
SELECT name, current_setting(name)
FROM unnest('{session_authorization,role,search_path}'::text[]) AS name
"""

_CLEAR = """
RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL;
CLOSE ALL; UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES;
SELECT pg_catalog.pg_advisory_unlock_all();
"""
#: One more column of the last statement of a reset: what deallocates the statements that were prepared by SQL.
_PREPARED = """, (
    SELECT pg_catalog.string_agg(pg_catalog.format('DEALLOCATE %I', name), '; ')
    FROM pg_catalog.pg_prepared_statements WHERE from_sql
)"""

#: Where the job's own values wait while its row is removed. Triggers that are deferred to the commit are the job's again.
_ASIDE = "workers.job_"

#: What the driver checks for an open transaction when it is set, and what it does not.
_CHECKED = ("autocommit", "isolation_level", "read_only", "deferrable")
_PLAIN = (
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "prepare_threshold",
    "prepared_max",
)
#: Lists that the driver has no public way to. Where it has no such list any more, nothing is put back.
_HANDLERS = ("_notice_handlers", "_notify_handlers")

_AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Of one connection. The texts are SQL; several statements in one message are one round trip."""

    #: The driver's attributes.
    attributes: dict[str, Any]
    #: How it converts values, and whom it tells of notices and notifications.
    adapters: AdaptersMap
    handlers: dict[str, list[Any]]
    #: Undoes whatever a job did to its session. Empty where that is a pooler's: it may be in other hands by now.
    reset: str
    aside: str
    back: str

    @classmethod
    async def of_async(cls, conn: psycopg.AsyncConnection[Any], *, pooled: bool) -> Baseline:
        """Of `conn` as it is; `pooled`: there is a pooler in between."""
        return cls._of(conn, await fetch_on(conn, _PROBE, {}, prepare=False), pooled)

    @classmethod
    def of(cls, conn: psycopg.Connection[Any], *, pooled: bool) -> Baseline:
        """The same of a synchronous connection."""
        cursor = psycopg.Cursor(conn, row_factory=tuple_row)
        return cls._of(conn, cursor.execute(_PROBE, prepare=False).fetchall(), pooled)

    @classmethod
    def _of(cls, conn: _AnyConnection, rows: Iterable[tuple[Any, ...]], pooled: bool) -> Baseline:
        found = dict(rows)
        identity = {name: found.pop(name) for name in _IDENTITY}
        save = [(_ASIDE + name, _current(name)) for name in _IDENTITY]
        back = [(name, _current(_ASIDE + name)) for name in _IDENTITY]
        return cls(
            attributes={name: getattr(conn, name) for name in (*_CHECKED, *_PLAIN)},
            adapters=AdaptersMap(conn.adapters),
            handlers={name: list(getattr(conn, name, ())) for name in _HANDLERS},
            # the role last: it may not be allowed to set the rest
            reset=""
            if pooled
            else _CLEAR + _set([*_literals(found), *_literals(identity)], local=False) + _PREPARED,
            aside=_escaped(_set([*save, *_literals(identity)], local=True)),
            back=_escaped(_set(back, local=True)),
        )

    def around(self, statement: str) -> str:
        """`statement`, which has parameters, as who we are and where our tables are, whatever a job has SET LOCAL.

        In a transaction. Its result is the second one.
        """
        return f"{self.aside}; {statement}; {self.back}"

    async def restore_async(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Make `conn` what it was, in one round trip; in two where statements were prepared by SQL."""
        await self.restore_driver_async(conn)
        if self.reset:
            cursor = psycopg.AsyncCursor(conn, row_factory=tuple_row)
            await cursor.execute(self.reset, prepare=False)
            while cursor.nextset():
                pass
            if (row := await cursor.fetchone()) and (prepared := row[-1]):
                await cursor.execute(prepared, prepare=False)
        _forget_notifications(conn)

    def restore(self, conn: psycopg.Connection[Any]) -> None:
        """The same for a synchronous connection."""
        for name in _CHECKED:
            if getattr(conn, name) != self.attributes[name]:
                getattr(conn, f"set_{name}")(self.attributes[name])
        self._restore_plain(conn)
        if self.reset:
            cursor = psycopg.Cursor(conn, row_factory=tuple_row)
            cursor.execute(self.reset, prepare=False)
            while cursor.nextset():
                pass
            if (row := cursor.fetchone()) and (prepared := row[-1]):
                cursor.execute(prepared, prepare=False)
        _forget_notifications(conn)

    async def restore_driver_async(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Only what the driver itself knows: no round trip."""
        for name in _CHECKED:
            if getattr(conn, name) != self.attributes[name]:
                await getattr(conn, f"set_{name}")(self.attributes[name])
        self._restore_plain(conn)

    def _restore_plain(self, conn: _AnyConnection) -> None:
        for name in _PLAIN:
            setattr(conn, name, self.attributes[name])
        # made anew where it is: a connection's can't be replaced
        AdaptersMap.__init__(conn.adapters, self.adapters)
        for name, handlers in self.handlers.items():
            if (present := getattr(conn, name, None)) is not None:
                present[:] = handlers


def _forget_notifications(conn: _AnyConnection) -> None:
    """Those that came for the job, and that it has not asked for: the driver keeps them for `notifies()`."""
    if kept := getattr(conn, "_notifies_backlog", None):
        kept.clear()


def _literals(settings: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, sql.Literal(value).as_string()) for name, value in settings.items()]


def _current(name: str) -> str:
    return f"pg_catalog.current_setting('{name}')"


def _set(settings: list[tuple[str, str]], *, local: bool) -> str:
    """One SELECT that sets names to expressions, in their order."""
    calls = (
        f"pg_catalog.set_config({sql.Literal(name).as_string()}, {value}, {str(local).lower()})"
        for name, value in settings
    )
    return "SELECT " + ", ".join(calls)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
