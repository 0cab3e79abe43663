"""The fixtures that all tests share: one PostgreSQL server a run, one schema a test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg_pool import AsyncConnectionPool

from tests.helpers.schemas import Schemas
from tests.helpers.server import (
    RUNS_BEFORE,
    SERVER_ONLY,
    NoServerError,
    TestServer,
    find_server,
    one_each,
)

AsyncPool = AsyncConnectionPool[psycopg.AsyncConnection[psycopg.rows.TupleRow]]

# A busy machine is no failure; --hypothesis-profile=fuzz takes its time.
settings.register_profile("suite", deadline=None)
settings.register_profile(
    "fuzz", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

#: What is said at the end of the run.
SERVER = pytest.StashKey[str]()
MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[TestServer]:
    """The server of this run."""
    try:
        with find_server() as found:
            pytestconfig.stash[SERVER] = str(found)
            yield found
    except NoServerError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(scope="session")
def admin(server: TestServer) -> Iterator[psycopg.Connection]:
    """An autocommit connection outside of every test's schema."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def schemas(admin: psycopg.Connection, server: TestServer) -> Iterator[Schemas]:
    """Where the tests have their schemas from."""
    found = Schemas(admin, server.dsn)
    yield found
    found.close()


@pytest.fixture
def raw_schema(schemas: Schemas) -> Iterator[str]:
    """The name of a schema of this test's own, without tables; dropped afterwards."""
    name = schemas.empty()
    yield name
    schemas.drop(name)


@pytest.fixture
def raw_database_url(schemas: Schemas, raw_schema: str) -> str:
    """A URL whose connections see `raw_schema` only."""
    return schemas.url(raw_schema)


@pytest.fixture
def schema(schemas: Schemas) -> Iterator[str]:
    """The name of a schema of this test's own, with the migrations applied."""
    name, state = schemas.migrated()
    yield name
    schemas.give_back(name, state)


@pytest.fixture
def database_url(schemas: Schemas, schema: str) -> str:
    """A URL whose connections see `schema` only."""
    return schemas.url(schema)


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a run before this one had another server: only what uses the server."""
    if not os.environ.get(SERVER_ONLY):
        return
    used: list[pytest.Item] = []
    rest: list[pytest.Item] = []
    for item in items:
        uses = "server" in getattr(item, "fixturenames", ()) or item.get_closest_marker("server")
        (used if uses else rest).append(item)
    config.hook.pytest_deselected(items=rest)
    items[:] = used


def pytest_xdist_auto_num_workers() -> int:
    """With `-n auto`: tests mostly wait, but what is bound to a time must not wait for a processor.

    Each process starts a server of its own; on one that was given the tests run one by one.
    """
    return min(2, os.cpu_count() or 1) if one_each() else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a process that runs a part of the tests: hand over what is to be said."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        stash = session.config.stash
        output["said"] = (stash.get(MEASURED, []), stash.get(SERVER, None))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what one of those processes handed over."""
    measured, server = getattr(node, "workeroutput", {}).get("said", ([], None))
    node.config.stash.setdefault(MEASURED, []).extend(measured)
    if server is not None:
        node.config.stash[SERVER] = server


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was measured, and on which server."""
    for line in config.stash.get(MEASURED, []):
        terminalreporter.write_line(line)
    if before := os.environ.get(RUNS_BEFORE):
        terminalreporter.write_line(before)
    if os.environ.get(SERVER_ONLY):
        terminalreporter.write_line("Deselected: tests that use no server, or one of their own.")
    if SERVER in config.stash:
        terminalreporter.write_line(f"Tested on {config.stash[SERVER]}")
