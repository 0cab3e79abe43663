"""Rows that no `enqueue` would have written: guarantee 5, rules 15 and 21, fault 6.

They are written by SQL beside good jobs. All of those finish; each of these ends dead, or untouched, with a reason.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, eventually, running
from workers import BackgroundJob

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


#: Payloads that jsonb holds and that no Good is; and a word of the reason that a human is to read.
POISON = {
    "number": ("1e5000", "out of range"),
    "a number in a field": ('{"number": 1e5000}', "`number`"),
    "infinite": ('{"ratio": 1e400}', "`ratio`"),
    "deep": ("[" * 6000 + "]" * 6000, "expected `object`"),
    "deep in a field": ('{"name": ' + "[" * 6000 + "]" * 6000 + "}", "`name`"),
    "deep and unknown": ('{"other": ' + '{"a":' * 6000 + "1" + "}" * 6000 + "}", "too deep"),
    "null": ("null", "expected `object`"),
    "array": ("[1, 2]", "expected `object`"),
    "string": ('"text"', "expected `object`"),
    "wrong type": ('{"number": "seven"}', "`number`"),
    "fraction": ('{"number": 1.5}', "`number`"),
    "too large for anything": ('{"number": ' + "9" * 5000 + "}", "`number`"),
}


def insert(conn: psycopg.Connection, job_type: str, data: str, **columns: Any) -> int:
    """Write a row without any check but PostgreSQL's own."""
    names = ["job_type", "data", "queue", *columns]
    values = [job_type, data, "default", *columns.values()]
    query = f"INSERT INTO background_jobs ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))}) RETURNING id"
    row = conn.execute(query.encode(), values).fetchone()
    assert row is not None
    return int(row[0])


async def test_poison_beside_a_thousand_good_jobs(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Each good job runs exactly once; each poison row is dead at once, with a reason, and harms no batch."""
    names: dict[int, str] = {}
    for number in range(1000):
        Good(number=number).enqueue(conn)
        if number % 40 == 0 and len(names) < len(POISON):
            name = list(POISON)[len(names)]
            names[insert(conn, "good", POISON[name][0])] = name
    world = World()
    await drain(pool, Good, context=world)
    assert Counter(world.seen) == Counter(range(1000))
    assert conn.execute(COUNT).fetchone() == (0,)
    dead = {
        names[job_id]: reason for job_id, reason in conn.execute("SELECT id, reason FROM dead_jobs")
    }
    assert dead.keys() == POISON.keys()
    for name, reason in dead.items():
        assert POISON[name][1] in reason, (name, reason)
        assert len(reason) < 1000


async def test_types_that_nobody_knows_are_left_alone(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Guarantee 7: also with names that are hostile, and in the queue that is worked."""
    hostile = [
        "unknown",
        "'; DROP TABLE background_jobs; --",
        "good ",
        "Good",
        "%s %(x)s {0}",
        "é\u2028\n\t",
        "x" * 400,
    ]
    ids = [insert(conn, name, "{}") for name in hostile]
    ids.append(insert(conn, "unknown", "{}", priority=32767, retries=2**31 - 1, crashes=32767))
    Good(number=1).enqueue(conn)
    world = World()
    await drain(pool, Good, context=world)
    assert world.seen == [1]
    query = "SELECT id, session_id, run_at FROM background_jobs ORDER BY id"
    assert conn.execute(query).fetchall() == [(job_id, None, None) for job_id in ids]


async def test_counters_at_their_limits(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Rule 21: no expression overflows; the jobs run, and are retried or dead."""
    limits = [31, 32, 1000, 2**31 - 3, 2**31 - 2, 2**31 - 1]
    for retries in limits:
        insert(conn, "count", "{}", retries=retries)
    Good(number=1).enqueue(conn)
    world = World()
    await drain(pool, Count, Good, context=world)
    assert sorted(world.seen, key=str) == [1, *["ran"] * len(limits)]
    left = conn.execute(
        "SELECT retries, run_at > now() FROM background_jobs ORDER BY id"
    ).fetchall()
    assert left == [(retries + 1, True) for retries in limits[:4]]
    dead = conn.execute("SELECT retries FROM dead_jobs").fetchall()
    assert dead == [(2**31 - 1,)] * 2


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


async def test_large_payloads(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Larger than `enqueue` takes, as large as the table takes: the good jobs beside it run, and so does this one."""
    insert(conn, "good", json.dumps({"number": 5, "name": "x" * 10_000_000}))
    Good.enqueue_batch(conn, [Good(number=number) for number in range(5)])
    world = World()
    await drain(pool, Good, context=world)
    assert sorted(world.seen) == [0, 1, 2, 3, 4, 5]


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
