"""Rows and outcomes that are refused, or look as if they should be: guarantees 5 and 6, rule 14. (See rows 6 and 7, too.)"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, eventually, running
from tests.helpers.server import TestServer
from workers import BackgroundJob, migrate

COUNT = "SELECT count(*) FROM background_jobs"
DEAD = "SELECT reason FROM dead_jobs"


class Good(BackgroundJob[World]):
    number: int = 0
    ratio: float = 0.0
    name: str = ""

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


class Count(BackgroundJob[World]):
    """Fails, whatever its counters say."""

    max_attempts = 2**31 - 1

    async def run(self, ctx: World) -> None:
        ctx.note("ran")
        raise ValueError


def insert(conn: psycopg.Connection, job_type: str, data: str, **columns: Any) -> int:
    """Write a row without any check but PostgreSQL's own."""
    names = ["job_type", "data", "queue", *columns]
    values = [job_type, data, "default", *columns.values()]
    query = f"INSERT INTO background_jobs ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))}) RETURNING id"
    row = conn.execute(query.encode(), values).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_job_that_crashed_too_often_is_dead_without_being_run(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Guarantee 6: `max_crashes` deaths of its process, counted apart from its attempts."""

    class Fragile(BackgroundJob[World]):
        max_crashes = 2

        async def run(self, ctx: World) -> None:
            ctx.note("fragile")

    insert(conn, "fragile", "{}", crashes=1)
    insert(conn, "fragile", "{}", crashes=2, retries=3)
    insert(conn, "good", "{}", crashes=32767)
    world = World()
    await drain(pool, Fragile, Good, context=world)
    assert world.seen == ["fragile"]
    rows = conn.execute("SELECT reason, retries, crashes FROM dead_jobs ORDER BY id").fetchall()
    words = "its process died under it"
    assert rows == [(f"{words} 2 times", 3, 2), (f"{words} 32767 times", 0, 32767)]


async def test_hostile_text_goes_through_unharmed(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """What text can hold comes back as it was, in payloads and in errors."""
    names = [
        "'; DROP TABLE background_jobs; --",
        "\\u0000 \\",
        '"}{',
        "\u202e\u2028é🦊",
        "%s %(x)s",
        "\x7f\x1b[31m",
    ]

    class Echo(BackgroundJob[World]):
        name: str

        async def run(self, ctx: World) -> None:
            ctx.note(self.name)
            raise ValueError(self.name)

    Echo.enqueue_batch(conn, [Echo(name=name) for name in names])
    world = World()
    await drain(pool, Echo, context=world)
    assert sorted(world.seen) == sorted(names)
    errors = [
        error for (error,) in conn.execute("SELECT last_error FROM background_jobs ORDER BY id")
    ]
    assert all(
        error.endswith(f"ValueError: {name}\n") for name, error in zip(names, errors, strict=True)
    )


async def test_an_outcome_that_the_store_refuses(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 14: the batch is split until the bad one is alone; it is buried with the store's own words, the rest lands."""
    conn.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.data->>'number')::int = 13 THEN RAISE 'number 13 may not go'; END IF;
            RETURN OLD;
        END $$;
        CREATE TRIGGER refuse BEFORE DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION refuse();
        """
    )
    Good.enqueue_batch(conn, [Good(number=number) for number in range(200)])
    world = World()
    async with running(pool, Good, context=world):
        await eventually(conn, COUNT, [(1,)])
    assert sorted(world.seen) == list(range(200))
    query = "SELECT data->>'number', session_id FROM background_jobs"
    assert conn.execute(query).fetchall() == [("13", None)], "it waits for another try"
    assert "number 13 may not go" in caplog.text
    assert "can't be buried either" in caplog.text


async def test_an_outcome_that_can_be_written_in_no_way_is_tried_again(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """As while rights are missing: it holds up nobody, and the job does not run again when it can be written at last."""
    conn.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF OLD.session_id IS NOT NULL AND OLD.data->>'number' = '13' THEN RAISE 'not now'; END IF;
            IF TG_OP = 'DELETE' THEN RETURN OLD; ELSE RETURN NEW; END IF;
        END $$;
        CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON background_jobs
        FOR EACH ROW EXECUTE FUNCTION refuse();
        """
    )
    Good.enqueue_batch(conn, [Good(number=number) for number in range(100)])
    world = World()
    async with running(pool, Good, context=world):
        await eventually(conn, COUNT, [(1,)])
        Good(number=100).enqueue(conn)
        await eventually(conn, COUNT, [(1,)])
        conn.execute("DROP TRIGGER refuse ON background_jobs")
        await eventually(conn, COUNT, [(0,)])
    assert sorted(world.seen) == list(range(101))
    assert conn.execute(DEAD).fetchall() == []
    told = [record for record in caplog.records if "can't be buried" in record.getMessage()]
    assert [record.levelname for record in told] == ["CRITICAL"]


class Foreign(BackgroundJob[World]):
    """Says what few encodings can hold."""

    async def run(self, ctx: World) -> None:
        raise ValueError("übel → böse")


@contextlib.contextmanager
def database(server: TestServer, admin: psycopg.Connection, encoding: str) -> Iterator[str]:
    """The URL of a migrated one that is not UTF8."""
    name = f"{encoding}_{secrets.token_hex(6)}".lower()
    settings = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 {settings}".encode())
    try:
        url = make_conninfo(server.dsn, dbname=name)
        migrate(url)
        yield url
    finally:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_an_error_that_the_database_has_no_letters_for(
    server: TestServer, admin: psycopg.Connection
) -> None:
    """Of a database that is not UTF8: the attempt is counted like any other, with the text in ASCII."""
    with (
        database(server, admin, "LATIN1") as url,
        psycopg.connect(url, autocommit=True, client_encoding="UTF8") as conn,
    ):
        Foreign().enqueue(conn)
        async with running(url, Foreign, context=World()):
            await eventually(conn, "SELECT retries FROM background_jobs", [(1,)])
        ((error,),) = conn.execute("SELECT last_error FROM background_jobs").fetchall()
        assert conn.execute(DEAD).fetchall() == []
    assert error.endswith("ValueError: \\xfcbel \\u2192 b\\xf6se\n")


async def test_what_no_client_can_be_sent_is_refused(
    server: TestServer, admin: psycopg.Connection
) -> None:
    """Of an encoding with holes: one such row would stop its queue, one such name all housekeeping."""
    insert = "INSERT INTO background_jobs (job_type, data, queue) VALUES ({}, {}, {})"
    good = "'good'", """'{"number": 1}'""", "'default'"
    hole = "'a' || chr(129)"
    world = World()
    with (
        database(server, admin, "WIN1252") as url,
        psycopg.connect(url, autocommit=True, client_encoding="UTF8") as conn,
    ):
        for place, what in enumerate((hole, f"jsonb_build_object('x', {hole})", hole)):
            row = (*good[:place], what, *good[place + 1 :])
            with pytest.raises(psycopg.errors.UntranslatableCharacter):
                conn.execute(insert.format(*row).encode())
        conn.execute(insert.format(*good).encode())
        async with running(url, Good, context=world):
            await eventually(conn, COUNT, [(0,)])
    assert world.seen == [1]


async def test_the_outcome_that_is_refused_alone_is_buried(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """A retry that the store refuses ends as a dead letter that says so."""
    conn.execute("ALTER TABLE background_jobs ADD CHECK (last_error NOT LIKE '%ValueError%')")
    Count().enqueue(conn)
    Good.enqueue_batch(conn, [Good(number=number) for number in range(20)])
    world = World()
    async with running(pool, Count, Good, context=world):
        await eventually(conn, COUNT, [(0,)])
    ((reason,),) = conn.execute(DEAD).fetchall()
    assert "its own outcome was refused by the store" in reason
