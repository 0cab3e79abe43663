"""Everything that `enqueue` accepts, made with the real libraries, behind one synchronous face.

`SETTLED` kinds write in a transaction that the caller ends, `ATOMIC` ones commit by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # publishes no types
import psycopg
import psycopg2  # type: ignore[import-untyped]  # publishes no types
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool, ConnectionPool
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from tests.helpers.django_database import django_database

__all__ = ["ATOMIC", "SETTLED", "Target", "open_target"]


def _same(value: Any) -> Any:
    return value


class Target:
    """Something to enqueue on. `end` turns what a call returned into its result."""

    def __init__(self, conn: Any, owner: Any = None, end: Callable[[Any], Any] = _same) -> None:
        self.conn = conn
        self.owner = conn if owner is None else owner
        self.end = end

    def commit(self) -> None:
        self.end(self.owner.commit())

    def rollback(self) -> None:
        self.end(self.owner.rollback())


class Traced:
    """What a tracer puts in front of a connection: everything is forwarded, __class__ too, and cursors are wrapped alike."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    @property  # type: ignore[misc]  # as wrapt does it
    def __class__(self) -> Any:
        return type(self._wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def cursor(self, **settings: Any) -> Traced:
        return Traced(self._wrapped.cursor(**settings))


# psycopg ----------------------------------------------------------------------------------------


@contextmanager
def _connection(url: str, **settings: Any) -> Iterator[Target]:
    with psycopg.connect(url, **settings) as conn:
        yield Target(conn)
        conn.rollback()


@contextmanager
def _cursor(
    url: str, factory: type[psycopg.Cursor[Any]] | None = None, **named: Any
) -> Iterator[Target]:
    conn: psycopg.Connection[Any]
    with psycopg.connect(url, row_factory=dict_row) as conn:
        with factory(conn) if factory else conn.cursor(**named) as cursor:
            yield Target(cursor, conn)
        conn.rollback()


@contextmanager
def _traced(url: str) -> Iterator[Target]:
    with _connection(url) as target:
        yield Target(Traced(target.conn))


@contextmanager
def _traced_cursor(url: str) -> Iterator[Target]:
    with _cursor(url) as target:
        yield Target(Traced(target.conn), target.owner)


@contextmanager
def _pool(url: str, **settings: Any) -> Iterator[Target]:
    with ConnectionPool(url, min_size=0, max_size=1, open=False, kwargs=settings) as pool:
        yield Target(pool)


@asynccontextmanager
async def _async_connection(url: str, **settings: Any) -> AsyncIterator[Target]:
    async with await psycopg.AsyncConnection.connect(url, **settings) as conn:
        yield Target(conn)
        await conn.rollback()


@asynccontextmanager
async def _async_cursor(url: str) -> AsyncIterator[Target]:
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as conn:
        yield Target(conn.cursor(), conn)
        await conn.rollback()


@asynccontextmanager
async def _async_traced(url: str) -> AsyncIterator[Target]:
    async with _async_connection(url) as target:
        yield Target(Traced(target.conn))


@asynccontextmanager
async def _async_pool(
    url: str, pool_class: type[AsyncConnectionPool[Any]] = AsyncConnectionPool
) -> AsyncIterator[Target]:
    async with pool_class(url, min_size=0, max_size=1, open=False) as pool:
        yield Target(pool)


# SQLAlchemy -------------------------------------------------------------------------------------

_CONNECT: dict[str, Callable[[str], Any]] = {
    "psycopg": psycopg.connect,
    "psycopg2": psycopg2.connect,
}


async def _asyncpg(url: str) -> Any:
    given = conninfo_to_dict(url)
    search_path = str(given["options"]).rpartition("search_path=")[2]
    return await asyncpg.connect(
        host=given.get("host"),
        port=given.get("port"),
        user=given.get("user"),
        password=given.get("password"),
        database=given.get("dbname"),
        server_settings={"search_path": search_path},
    )


_CONNECT_ASYNC: dict[str, Callable[[str], Any]] = {
    "psycopg": psycopg.AsyncConnection.connect,
    "asyncpg": _asyncpg,
}


@contextmanager
def _engine(url: str, driver: str, **settings: Any) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(
        f"postgresql+{driver}://",
        creator=partial(_CONNECT[driver], url),
        poolclass=NullPool,
        **settings,
    )
    yield engine
    engine.dispose()


@contextmanager
def _session(url: str, driver: str) -> Iterator[Target]:
    with _engine(url, driver) as engine, Session(engine) as session:
        yield Target(session)


@contextmanager
def _scoped_session(url: str) -> Iterator[Target]:
    with _engine(url, "psycopg") as engine:
        scoped = scoped_session(sessionmaker(engine))
        yield Target(scoped)
        scoped.remove()


@contextmanager
def _core(url: str, driver: str, **settings: Any) -> Iterator[Target]:
    with _engine(url, driver, **settings) as engine, engine.connect() as conn:
        yield Target(conn)


@asynccontextmanager
async def _async_engine(url: str, driver: str, **settings: Any) -> AsyncIterator[Any]:
    engine = create_async_engine(
        f"postgresql+{driver}://",
        async_creator=partial(_CONNECT_ASYNC[driver], url),
        poolclass=NullPool,
        **settings,
    )
    yield engine
    await engine.dispose()


@asynccontextmanager
async def _async_session(url: str, driver: str) -> AsyncIterator[Target]:
    async with _async_engine(url, driver) as engine, AsyncSession(engine) as session:
        yield Target(session)


@asynccontextmanager
async def _async_scoped(url: str) -> AsyncIterator[Target]:
    async with _async_engine(url, "asyncpg") as engine:
        factory = async_sessionmaker(engine)
        scoped = async_scoped_session(factory, scopefunc=asyncio.get_running_loop)
        yield Target(scoped)
        await scoped.remove()


@asynccontextmanager
async def _async_core(url: str, driver: str, **settings: Any) -> AsyncIterator[Target]:
    async with _async_engine(url, driver, **settings) as engine, engine.connect() as conn:
        yield Target(conn)


# Django -----------------------------------------------------------------------------------------


@contextmanager
def _django(url: str, *, proxy: bool = True, **options: Any) -> Iterator[Target]:
    """In autocommit, which is Django's default."""
    from django.db import connections

    with django_database(url, **options) as connection:
        yield Target(connection if proxy else connections["default"])


@contextmanager
def _django_atomic(url: str, **options: Any) -> Iterator[Target]:
    """In a transaction that the test ends by hand, as atomic() would at its end."""
    with _django(url, **options) as target:
        target.conn.set_autocommit(False)
        yield target
        target.rollback()


# Tables -----------------------------------------------------------------------------------------

Opener = Callable[[str], AbstractContextManager[Target] | AbstractAsyncContextManager[Target]]

SETTLED: dict[str, Opener] = {
    "psycopg": _connection,
    "psycopg dict_row": partial(_connection, row_factory=dict_row),
    "psycopg unprepared": partial(_connection, prepare_threshold=None),
    "psycopg prepared": partial(_connection, prepare_threshold=0),
    "psycopg ClientCursor": partial(_connection, cursor_factory=psycopg.ClientCursor),
    "psycopg RawCursor": partial(_connection, cursor_factory=psycopg.RawCursor),
    "psycopg cursor": _cursor,
    "psycopg binary cursor": partial(_cursor, binary=True),
    "psycopg server cursor": partial(_cursor, name="mine"),
    "psycopg client cursor": partial(_cursor, factory=psycopg.ClientCursor),
    "psycopg traced": _traced,
    "psycopg traced cursor": _traced_cursor,
    "psycopg async": _async_connection,
    "psycopg async traced": _async_traced,
    "psycopg async dict_row": partial(_async_connection, row_factory=dict_row),
    "psycopg async RawCursor": partial(_async_connection, cursor_factory=psycopg.AsyncRawCursor),
    "psycopg async cursor": _async_cursor,
    "sqlalchemy psycopg session": partial(_session, driver="psycopg"),
    "sqlalchemy psycopg connection": partial(_core, driver="psycopg"),
    "sqlalchemy psycopg scoped_session": _scoped_session,
    "sqlalchemy psycopg2 session": partial(_session, driver="psycopg2"),
    "sqlalchemy psycopg2 connection": partial(_core, driver="psycopg2"),
    "sqlalchemy psycopg async session": partial(_async_session, driver="psycopg"),
    "sqlalchemy psycopg async connection": partial(_async_core, driver="psycopg"),
    "sqlalchemy asyncpg session": partial(_async_session, driver="asyncpg"),
    "sqlalchemy asyncpg connection": partial(_async_core, driver="asyncpg"),
    "sqlalchemy asyncpg scoped_session": _async_scoped,
    "django": _django_atomic,
    "django server-side binding": partial(_django_atomic, server_side_binding=True),
}

ATOMIC: dict[str, Opener] = {
    "psycopg": partial(_connection, autocommit=True),
    "psycopg async": partial(_async_connection, autocommit=True),
    "psycopg pool": _pool,
    "psycopg autocommit pool": partial(_pool, autocommit=True),
    "psycopg async pool": _async_pool,
    "psycopg async null pool": partial(_async_pool, pool_class=AsyncNullConnectionPool),
    "sqlalchemy psycopg": partial(_core, driver="psycopg", isolation_level="AUTOCOMMIT"),
    "sqlalchemy psycopg2": partial(_core, driver="psycopg2", isolation_level="AUTOCOMMIT"),
    "sqlalchemy asyncpg": partial(_async_core, driver="asyncpg", isolation_level="AUTOCOMMIT"),
    "django": _django,
    "django connections": partial(_django, proxy=False),
}


@contextmanager
def open_target(opener: Opener, url: str) -> Iterator[Target]:
    """Yield the target that `opener` makes for `url`; an asynchronous one has an event loop of its own."""
    opened = opener(url)
    if isinstance(opened, AbstractContextManager):
        with opened as target:
            yield target
        return
    with asyncio.Runner() as runner:

        def end(awaitable: Any) -> Any:
            async def wait() -> Any:
                return await awaitable

            return runner.run(wait())

        target = end(opened.__aenter__())
        target.end = end
        yield target
        end(opened.__aexit__(None, None, None))
