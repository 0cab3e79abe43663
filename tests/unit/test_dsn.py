"""What is understood as the URL of a database, wherever one is given, and what is said when it is none: no password."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from tests.helpers.shop import SECRET
from workers import ConfigurationError, Runner, migrate
from workers.dsn import read_dsn
from workers.storage import check_target, open_storage
from workers.storage.memory import MemoryStorage


async def run(url: Any) -> None:
    Runner(url, None)


async def apply(url: Any) -> None:
    migrate(url)


async def read(url: Any) -> None:
    async with open_storage(url):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgresql://me:a%40b@h:5432/x?sslmode=require", None),
        ("postgres://h/x", None),
        ("postgresql://", None),
        ("postgresql://me@/x?host=/run/p@stgres", "refused"),
        ("postgresql:///x?options=-csearch_path%3Da", None),
        ("host=h dbname=x password='a b'", None),
        ("postgresql+psycopg://me:pw@h/x", "postgresql://me:pw@h/x"),
        ("postgres+asyncpg://h/x", "postgres://h/x"),
        (" postgresql://h/x\n", "postgresql://h/x"),
    ],
)
def test_urls_and_connection_strings(url: str, dsn: str | None) -> None:
    if dsn == "refused":
        with pytest.raises(ConfigurationError, match="as it is meant"):
            read_dsn(url)
    else:
        assert read_dsn(url) == (dsn or url)


NO_DSN = {
    f"x{SECRET}": "can't be read. It should look like postgresql://",
    f"postgresql+asyncpg://me:{SECRET}@h/x?ssl=require": "parameters after ? are libpq's",
    f"postgresql://me:{SECRET[:3]}@{SECRET}@h/x": "@ : / ? % are written as %40",
    f"postgresql://me:x/{SECRET}@h/x": "can't be read as it is meant",
    f"postgresql://me:12/{SECRET}@h/x": "can't be read as it is meant",
    f"host=h password={SECRET} {SECRET}": "can't be read",
    f"mysql+pymysql://me:{SECRET}@h/x": "is one for mysql, but jobs are kept in PostgreSQL",
    "sqlite:///jobs.db": "is one for sqlite",
    "embedded:./data": "use `with workers.embedded.embedded",
}


@pytest.mark.parametrize("ask", [run, apply, read])
@pytest.mark.parametrize("url", NO_DSN)
async def test_what_is_none_is_refused_without_its_password(
    url: str, ask: Callable[[Any], Awaitable[None]]
) -> None:
    """In the message, and in what a log makes of the exception."""
    with pytest.raises(ConfigurationError) as caught:
        await ask(url)
    assert NO_DSN[url] in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


@pytest.mark.parametrize("ask", [run, apply, read])
@pytest.mark.parametrize("url", [None, ""])
async def test_no_url_asks_for_the_variable(
    url: Any, ask: Callable[[Any], Awaitable[None]]
) -> None:
    with pytest.raises(ConfigurationError, match=r"is DATABASE_URL set\?"):
        await ask(url)


def test_other_objects_get_advice() -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_engine(f"postgresql+psycopg://me:{SECRET}@h/x")
    async_engine = create_async_engine(f"postgresql+psycopg://me:{SECRET}@h/x")
    refused = {
        7: "on int: give a DSN, a psycopg_pool.AsyncConnectionPool or a Storage",
        ConnectionPool("", open=False): "make a psycopg_pool.AsyncConnectionPool",
        psycopg.AsyncConnection.__new__(psycopg.AsyncConnection): "one connection is too few",
        engine: "give engine.url.render_as_string",
        async_engine: "give engine.url.render_as_string",
        engine.url: "give url.render_as_string",
    }
    target: Any
    for target, message in refused.items():
        with pytest.raises(ConfigurationError) as caught:
            check_target(target)
        assert message in str(caught.value)
        assert SECRET not in str(caught.value)
    assert check_target(engine.url.render_as_string(hide_password=False)) == (
        f"postgresql://me:{SECRET}@h/x"
    )


def test_the_string_of_a_pool_is_looked_at() -> None:
    """psycopg would quote it once the runner starts."""
    for conninfo in (f"x{SECRET}", f"postgresql+psycopg://me:{SECRET}@h/x"):
        with pytest.raises(ConfigurationError, match=r"can't be read|names a driver") as caught:
            check_target(AsyncConnectionPool(conninfo, open=False))
        assert SECRET not in str(caught.value)


def test_what_works_is_kept() -> None:
    storage = MemoryStorage()
    pool = AsyncConnectionPool(open=False)
    assert check_target(storage) is storage
    assert check_target(pool) is pool
