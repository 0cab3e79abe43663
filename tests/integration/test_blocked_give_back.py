"""A deduplicated job that can't go back yet, as an open transaction enqueues the same: nobody else waits with it."""

from __future__ import annotations

import psycopg

from tests.conftest import AsyncPool
from tests.helpers.running import World, eventually, running
from workers import BackgroundJob, Cancel, Discard, Fixed

ENDS = ("again", "cancelled", "discarded", "kept")


class Twin(BackgroundJob[World]):
    deduplicated = True
    backoff = Fixed(1000)
    number: int

    async def run(self, ctx: World) -> None:
        ctx.signal(f"twin {self.number}")
        await ctx.wait("fail")
        raise ValueError


class Ends(BackgroundJob[World]):
    archive = True
    backoff = Fixed(1000)
    how: str

    async def run(self, ctx: World) -> None:
        match self.how:
            case "again":
                raise ValueError
            case "cancelled":
                raise Cancel("no more")
            case "discarded":
                raise Discard("of no use")


async def test_every_other_end_is_written(
    pool: AsyncPool, conn: psycopg.Connection, database_url: str
) -> None:
    """Rule 14: those that end later, and another one that goes back; it goes back itself when it can."""
    world = World()
    waiting = "SELECT job_type, retries, session_id IS NULL FROM background_jobs ORDER BY id"
    async with running(pool, Twin, Ends, context=world):
        Twin.enqueue_batch(conn, [Twin(number=1), Twin(number=2)])
        await world.wait("twin 1")
        await world.wait("twin 2")
        with psycopg.connect(database_url) as producer:
            assert Twin(number=1).enqueue(producer) is not None
            world.signal("fail")
            await eventually(
                conn, waiting, [("twin", 0, False), ("twin", 1, True)]
            )  # the first one is known to be in the way
            Ends.enqueue_batch(conn, [Ends(how=how) for how in ENDS])
            await eventually(
                conn, waiting, [("twin", 0, False), ("twin", 1, True), ("ends", 1, True)]
            )
            await eventually(conn, "SELECT count(*) FROM archived_jobs", [(2,)])
            await eventually(conn, "SELECT count(*) FROM dead_jobs", [(1,)])
            producer.rollback()
        back = [("twin", 1, True), ("twin", 1, True), ("ends", 1, True)]
        await eventually(conn, waiting, back)
