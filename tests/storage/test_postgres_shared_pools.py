"""Pools that configure their connections, that are shared, and that were closed (rule 17)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from anyio import to_thread
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from tests.helpers.server import TestServer, connection_url
from tests.storage.engines import PostgresEngine, mails
from workers.errors import ConfigurationError, StorageUnavailableError
from workers.storage.base import Guard
from workers.storage.postgres.storage import PostgresStorage

Pools = Callable[..., AsyncConnectionPool[Any]]


@pytest.fixture
def elsewhere(server: TestServer, database_url: str, schema: str) -> dict[str, Any]:
    """Arguments of a pool whose connections find the tables only because it configures them."""

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        await conn.execute("SET statement_timeout = '61s'")
        await conn.commit()

    return {"conninfo": server.dsn, "configure": configure}


async def test_every_link_finds_the_tables_of_a_configured_pool(
    elsewhere: dict[str, Any], database_url: str, warm_server: None
) -> None:
    """What `configure` sets is known to none but the pool, and the runner has links of its own."""
    async with PostgresEngine.opened(database_url, **elsewhere) as engine:
        storage, runner = engine.storage, engine.runner()
        assert runner.maintain().alive
        listener = storage.listener()
        assert listener is not None
        await listener.open()
        await listener.close()
        await storage.enqueue(mails(4))
        first, second, third, fourth = await runner.take()
        shown = "SELECT current_setting('statement_timeout'), to_regclass('background_jobs') IS NOT NULL"
        for job in (first, second):  # on the same connection, which was reset in between
            async with storage.transaction(runner.session, Guard(job.id, job.token)) as run:
                assert run is not None
                cursor = await run.connection.execute(shown)
                assert await cursor.fetchone() == ("61s", True)
        for job in (third, fourth):

            def work(guard: Guard) -> Any:
                with storage.transaction_sync(runner.session, guard) as run:
                    assert run is not None
                    return run.connection.execute(shown).fetchone()

            found = await to_thread.run_sync(work, Guard(job.id, job.token))
            assert found == ("0", True)


async def test_a_configure_that_fails_says_so(database_url: str) -> None:
    """And is tried again, as the pool does."""

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        raise ZeroDivisionError("no")

    pool = AsyncConnectionPool(database_url, configure=configure, min_size=1, open=False)
    with pytest.raises(StorageUnavailableError, match="`configure` failed: ZeroDivisionError"):
        await PostgresStorage(pool).open()

    async def half(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT 1")

    pool = AsyncConnectionPool(database_url, configure=half, min_size=1, open=False)
    with pytest.raises(StorageUnavailableError, match="left a transaction open"):
        await PostgresStorage(pool).open()


async def test_a_pool_that_was_closed_can_not_be_opened_again(database_url: str) -> None:
    """psycopg_pool can't; the error says what to do instead."""
    pool = AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False)
    storage = PostgresStorage(pool)
    await storage.open()
    await storage.close()
    for again in (storage, PostgresStorage(pool)):
        with pytest.raises(ConfigurationError, match=r"was closed.*or a DSN, or open the pool"):
            await again.open()
        await again.close()


async def test_the_last_user_closes_a_shared_pool(database_url: str) -> None:
    """Two runners on one pool that was not open: the one that ends first leaves it to the other."""
    pool = AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False)
    first, second = PostgresStorage(pool), PostgresStorage(pool)
    await first.open()
    await second.open()
    await first.close()
    await first.close()
    assert not pool.closed
    assert await second.stats() == []
    await second.close()
    assert pool.closed


async def test_a_pool_that_can_not_be_reached_is_nobodys(database_url: str) -> None:
    """What failed to open a pool does not keep it open for others."""
    unreachable = connection_url(database_url, host="127.0.0.1", port="1")
    pool = AsyncConnectionPool(unreachable, min_size=1, open=False)
    storage = PostgresStorage(pool)
    with pytest.raises(StorageUnavailableError):
        await storage.open()
    await storage.close()
    assert pool.closed
