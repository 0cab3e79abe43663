"""The three scans of a claim, from a hint, thorough and for suspects: each is filtered for itself, so each is tried."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest

from tests.storage.engines import PostgresEngine, Runner, ids, mails

HINTED: dict[str, Any] = {"thorough": False}
THOROUGH: dict[str, Any] = {"thorough": True}
SUSPECTS: dict[str, Any] = {"suspects": 2}

pytestmark = pytest.mark.parametrize(
    "scan",
    [
        pytest.param(HINTED, id="hinted"),
        pytest.param(THOROUGH, id="thorough"),
        pytest.param(SUSPECTS, id="suspects"),
    ],
)


async def warmed_up(postgres: PostgresEngine) -> Runner:
    """A runner with hints for the priorities 0 and 5: what lies below is not seen from there."""
    runner = postgres.runner()
    for priority in (0, 5):
        await postgres.storage.enqueue(mails(1, priority=priority))
        await runner.complete(await runner.take())
    [below] = await postgres.storage.enqueue(mails(1))
    postgres.change(below or 0, position=0)
    assert await runner.take(**HINTED) == []
    postgres.conn.execute("DELETE FROM background_jobs")
    return runner


async def enqueue(
    postgres: PostgresEngine, scan: dict[str, Any], count: int = 1, **settings: Any
) -> list[int]:
    """Jobs that `scan` looks for."""
    made = [job_id or 0 for job_id in await postgres.storage.enqueue(mails(count, **settings))]
    for job_id in made:
        postgres.change(job_id, crashes=scan.get("suspects", 0))
    return made


async def test_what_is_not_to_be_taken(postgres: PostgresEngine, scan: dict[str, Any]) -> None:
    """Rules 6, 8 and 20: other queues, other types, what waits for a time, what runs, and the other kind of job."""
    runner = await warmed_up(postgres)
    for settings in ({"queue": "other"}, {"job_type": "other"}, {"delay": 3600}):
        await enqueue(postgres, scan, **settings)
    [running] = await enqueue(postgres, scan)
    postgres.change(running, session_id=4711, claim_token=1)
    [other] = await enqueue(postgres, scan)
    postgres.change(other, crashes=3 if scan is SUSPECTS else 1)
    if scan is SUSPECTS:
        await enqueue(postgres, HINTED)
    wanted = await enqueue(postgres, scan, 2)
    assert ids(await runner.take(**scan)) == wanted


async def test_locked_rows_are_skipped(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection, scan: dict[str, Any]
) -> None:
    """Rules 5 and 24: a row that some transaction holds is neither taken nor waited for."""
    runner = await warmed_up(postgres)
    locked, free = await enqueue(postgres, scan, 2)
    async with aconn.transaction():
        await aconn.execute("SELECT FROM background_jobs WHERE id = %s FOR SHARE", [locked])
        with anyio.fail_after(4):
            assert ids(await runner.take(**scan)) == [free]
    later = scan if scan is SUSPECTS else THOROUGH  # a hint has passed it by
    assert ids(await runner.take(**later)) == [locked]


async def test_the_limit_holds_across_priorities(
    postgres: PostgresEngine, scan: dict[str, Any]
) -> None:
    """Rule 1: at most k, highest priority first."""
    runner = await warmed_up(postgres)
    low = await enqueue(postgres, scan, 3)
    high = await enqueue(postgres, scan, 3, priority=5)
    assert ids(await runner.take(4, **scan)) == [*high, low[0]]
