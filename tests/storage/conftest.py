"""Fixtures of the conformance suite: `engine` is each engine in turn, `postgres` is the one with SQL behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.helpers.role_users import opened_users
from tests.storage.engines import Engine, MemoryEngine, PostgresEngine, Runner


@pytest.fixture(scope="session")
def warm_server(admin: psycopg.Connection) -> None:
    """A server that has been up long enough for free locks to mean something (rule 19)."""
    admin.execute(
        "SELECT pg_sleep(greatest(0, 5.1 - extract(epoch FROM now() - pg_postmaster_start_time())))"
    )


@pytest.fixture(params=["memory", "postgres"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """Each engine, empty; PostgreSQL as a user who has the worker's role, and no other right."""
    if request.param == "memory":
        yield MemoryEngine()
        return
    request.getfixturevalue("warm_server")
    url, admin = request.getfixturevalue("database_url"), request.getfixturevalue("admin")
    with opened_users(admin, url) as users:
        async with PostgresEngine.opened(users.urls["worker"], conn_url=url) as opened:
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
