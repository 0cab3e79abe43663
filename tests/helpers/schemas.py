"""Schemas with the tables in them, each used by one test after the other: to make one takes longer than most tests do."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count

import psycopg
import pytest
from psycopg import sql

from tests.helpers.server import connection_url
from workers.migrations import migrate

__all__ = ["Schemas"]

#: Every backend that holds something in a schema, except the one that asks.
_HOLDERS = """
SELECT DISTINCT activity.pid, activity.state, activity.query
FROM pg_locks AS held
JOIN pg_class AS relation ON relation.oid = held.relation
JOIN pg_stat_activity AS activity ON activity.pid = held.pid
WHERE relation.relnamespace = to_regnamespace(%s) AND activity.pid <> pg_backend_pid()
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
#: Changes with everything that is defined, granted or analysed in a schema.
_STATE = """
SELECT md5(string_agg(what, ' ' ORDER BY what)) FROM (
    SELECT oid::text || ':' || xmin::text AS what FROM pg_class WHERE relnamespace = to_regnamespace(%(name)s)
    UNION ALL
    SELECT oid::text || ':' || xmin::text FROM pg_proc WHERE pronamespace = to_regnamespace(%(name)s)
    UNION ALL
    SELECT attribute.attrelid::text || ':' || attribute.attnum::text || ':' || attribute.xmin::text
    FROM pg_class AS relation JOIN pg_attribute AS attribute ON attribute.attrelid = relation.oid
    WHERE relation.relnamespace = to_regnamespace(%(name)s)
    UNION ALL
    SELECT 'analysed' FROM pg_class AS relation
    WHERE relation.relnamespace = to_regnamespace(%(name)s)
        AND EXISTS (SELECT FROM pg_statistic WHERE starelid = relation.oid)
    UNION ALL
    SELECT oid::text || ':' || xmin::text FROM pg_namespace WHERE nspname = %(name)s
) AS everything
"""
_TABLES = """
SELECT relname, pg_relation_size(oid) > 0 FROM pg_class
WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' ORDER BY relname
"""
_RESTART = "SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'S'"
#: They say which migrations were applied.
_KEPT = ["workers_migrations"]


class Schemas:
    """On one server, made and dropped through `admin`, an autocommit connection."""

    def __init__(self, admin: psycopg.Connection, dsn: str) -> None:
        self._admin = admin
        self._dsn = dsn
        self._numbers = count(1)
        #: Clean ones, and what they look like.
        self._clean: dict[str, str] = {}

    def empty(self) -> str:
        """The name of a new one without tables."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self._admin.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        return name

    def migrated(self) -> tuple[str, str]:
        """The name of one with the tables, all empty; and what it looks like."""
        if self._clean:
            return self._clean.popitem()
        name = self.empty()
        migrate(self.url(name))
        return name, self._state(name)

    def url(self, name: str) -> str:
        """A URL whose connections see that one only."""
        return connection_url(self._dsn, options=f"-csearch_path={name}")

    def give_back(self, name: str, state: str) -> None:
        """Clean it for the next test; one in which more than rows has changed is dropped."""
        if self._alone(name, lambda: self._cleaned(name, state)):
            self._clean[name] = self._state(name)

    def drop(self, name: str) -> None:
        """It is not wanted any more."""
        self._alone(name, lambda: self._drop(name))

    def close(self) -> None:
        """Drop the clean ones."""
        while self._clean:
            self.drop(self._clean.popitem()[0])

    def _alone(self, name: str, work: Callable[[], bool]) -> bool:
        """Do `work`, which waits for others. A connection that still holds something in the schema is ended, and fails the
        test."""
        try:
            with self._admin.transaction():
                self._admin.execute("SET LOCAL lock_timeout = '5s'")
                self._admin.execute("SET LOCAL client_min_messages = warning")
                return work()
        except psycopg.errors.LockNotAvailable:
            holders = self._admin.execute(_HOLDERS, [name]).fetchall()
            for pid, _, _ in holders:
                self._admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            self._drop(name)
            pytest.fail(f"the test left transactions open in its schema: {holders}")

    def _drop(self, name: str) -> bool:
        self._admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
        return False

    def _cleaned(self, name: str, state: str) -> bool:
        """Whether it is clean."""
        if self._state(name) != state:
            return self._drop(name)
        tables = self._admin.execute(_TABLES, [name]).fetchall()
        self._for_each("LOCK TABLE {}", name, [table for table, _ in tables])
        self._for_each(
            "TRUNCATE {}", name, [table for table, used in tables if used and table not in _KEPT]
        )
        self._admin.execute(_RESTART, [name])
        return True

    def _for_each(self, command: str, schema: str, tables: list[str]) -> None:
        if tables:
            names = sql.SQL(", ").join(sql.Identifier(schema, table) for table in tables)
            self._admin.execute(sql.SQL(command).format(names))

    def _state(self, name: str) -> str:
        ((state,),) = self._admin.execute(_STATE, {"name": name}).fetchall()
        return str(state)
