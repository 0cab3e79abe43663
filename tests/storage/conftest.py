"""Fixtures of the conformance suite: `engine` is each engine in turn, `postgres` is the one with SQL behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from tests.helpers.role_users import Users, opened_users
from tests.storage.engines import Engine, MemoryEngine, PostgresEngine, Runner


@pytest.fixture(scope="session")
def warm_server(admin: psycopg.Connection) -> None:
    """A server that has been up long enough for free locks to mean something (rule 19)."""
    admin.execute(
        "SELECT pg_sleep(greatest(0, 5.1 - extract(epoch FROM now() - pg_postmaster_start_time())))"
    )


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.server)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """Each engine, empty."""
    if request.param == "memory":
        yield MemoryEngine()
        return
    request.getfixturevalue("warm_server")
    async with PostgresEngine.opened(request.getfixturevalue("database_url")) as opened:
        yield opened


@pytest.fixture
async def postgres(database_url: str, warm_server: None) -> AsyncIterator[PostgresEngine]:
    """PostgreSQL alone."""
    async with PostgresEngine.opened(database_url) as opened:
        yield opened


@pytest.fixture
async def runner(engine: Engine) -> Runner:
    """A runner."""
    return engine.runner()


@pytest.fixture
async def other(engine: Engine) -> Runner:
    """A second runner."""
    return engine.runner("other")


@pytest.fixture
def users(admin: psycopg.Connection, database_url: str) -> Iterator[Users]:
    """A user for each of the roles."""
    with opened_users(admin, database_url) as opened:
        yield opened


@pytest.fixture
def producer(users: Users) -> Iterator[psycopg.Connection]:
    """A connection of the one who may enqueue."""
    with psycopg.connect(users.urls["enqueue"], autocommit=True) as connection:
        yield connection
