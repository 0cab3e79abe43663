"""The fixtures that all tests share: one PostgreSQL server a run, one schema a test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from itertools import count

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from tests.helpers.server import (
    RUNS_BEFORE,
    NoServerError,
    TestServer,
    connection_url,
    find_server,
)
from workers.migrations import migrate

AsyncPool = AsyncConnectionPool[psycopg.AsyncConnection[psycopg.rows.TupleRow]]

# A busy machine is no failure; --hypothesis-profile=fuzz takes its time.
settings.register_profile("suite", deadline=None)
settings.register_profile(
    "fuzz", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

SERVER = pytest.StashKey[TestServer]()

# Every backend that holds something in a schema, except the one that asks.
HOLDERS = """
SELECT DISTINCT activity.pid, activity.state, activity.query
FROM pg_locks AS held
JOIN pg_class AS relation ON relation.oid = held.relation
JOIN pg_stat_activity AS activity ON activity.pid = held.pid
WHERE relation.relnamespace = to_regnamespace(%s) AND activity.pid <> pg_backend_pid()
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

_schema_numbers = count(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[TestServer]:
    """The server of this run."""
    try:
        with find_server() as found:
            pytestconfig.stash[SERVER] = found
            yield found
    except NoServerError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(scope="session")
def admin(server: TestServer) -> Iterator[psycopg.Connection]:
    """An autocommit connection outside of every test's schema."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def raw_schema(admin: psycopg.Connection) -> Iterator[str]:
    """The name of a schema of this test's own, without tables; dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_schema_numbers)}"
    admin.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    yield name
    _drop(admin, name)


@pytest.fixture
def raw_database_url(server: TestServer, raw_schema: str) -> str:
    """A URL whose connections see `raw_schema` only."""
    return connection_url(server.dsn, options=f"-csearch_path={raw_schema}")


@pytest.fixture
def database_url(raw_database_url: str) -> str:
    """A URL whose connections see this test's own schema only, with the migrations applied."""
    migrate(raw_database_url)
    return raw_database_url


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def aconn(database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """An asynchronous connection in autocommit mode."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[AsyncPool]:
    """An open pool of at most 4 connections."""
    async with AsyncConnectionPool(database_url, min_size=1, max_size=4, open=False) as opened:
        yield opened


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which server the tests ran on."""
    if before := os.environ.get(RUNS_BEFORE):
        terminalreporter.write_line(before)
    if SERVER in config.stash:
        terminalreporter.write_line(f"Tested on {config.stash[SERVER]}")


def _drop(admin: psycopg.Connection, schema: str) -> None:
    """Drop `schema`; a connection that still holds something in it is ended, and fails the test."""
    drop = sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema))
    try:
        with admin.transaction():
            admin.execute("SET LOCAL lock_timeout = '5s'")
            admin.execute("SET LOCAL client_min_messages = warning")
            admin.execute(drop)
    except psycopg.errors.LockNotAvailable:
        holders = admin.execute(HOLDERS, [schema]).fetchall()
        for pid, _, _ in holders:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        admin.execute(drop)
        pytest.fail(f"the test left transactions open in its schema: {holders}")
