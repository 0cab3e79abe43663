"""Jobs that a runner gives back without having run them, and that make way for identical ones: this is told too. Rule 26."""

from __future__ import annotations

import logging

import psycopg
import pytest
from anyio import to_thread

from tests.conftest import AsyncPool
from tests.helpers.proxy import proxy_to
from tests.helpers.running import World, listening_to, running
from workers import BackgroundJob
from workers.storage.base import ClaimRequest, Scan
from workers.storage.postgres.storage import PostgresStorage
from workers.telemetry import JobSuperseded

#: Part of a claim.
CLAIM = "INTO worker_claims"
#: No runner that begins here comes to use it.
UNKNOWN_TOKEN = 10**6


class Note(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("ran")


class Twin(BackgroundJob[World]):
    deduplicated = True
    queue = "elsewhere"

    async def run(self, ctx: World) -> None:
        ctx.note("twin ran")


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "workers")


async def hold_unknown(pool: AsyncPool, conn: psycopg.Connection, session: int) -> int:
    """What a claim leaves behind that lands when its runner has given it up; and then an identical job waits."""
    job_id = Twin().enqueue(conn)
    request = ClaimRequest(
        session=session,
        token=UNKNOWN_TOKEN,
        queue=Twin.queue,
        job_types=("twin",),
        limit=1,
        scan=Scan(thorough=True),
    )
    storage = PostgresStorage(pool)
    claimed = await storage.claim(request)
    await storage.close()
    [job] = claimed.jobs
    assert job.id == job_id
    wait_identical(conn)
    return job.id


def wait_identical(conn: psycopg.Connection) -> None:
    assert Twin().enqueue(conn, delay=1000) is not None


def check_told(
    heard: list[JobSuperseded], session: int, job_id: int | None, text: str, *given_back: str
) -> None:
    """Once, as an event and in the log, beside what the log says of all that was given back."""
    assert [(event.session, event.job_id) for event in heard] == [(session, job_id)]
    for line in (f"job {job_id} made way for an identical one that waits", *given_back):
        assert text.count(line) == 1, line


async def test_by_a_claim_whose_reply_was_lost(
    conn: psycopg.Connection, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rules 2 and 26: before the next claim."""
    world = World()
    with listening_to(JobSuperseded) as heard, proxy_to(database_url) as proxy:
        async with running(proxy.url, Twin, context=world, listen=False) as handle:
            held = proxy.hold_reply(CLAIM, rows=True)
            job_id = Twin().enqueue(conn)
            await to_thread.run_sync(held.wait)
            wait_identical(conn)
            proxy.cut()
            await heard.wait_for()
    given_back = "gave back 1 jobs of a claim whose reply was lost"
    check_told(heard, handle.session, job_id, caplog.text, given_back)
    assert world.seen == []


async def test_by_the_session_that_held_it_without_knowing(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Rules 2 and 26: when it compares what it holds with what the store knows."""
    with listening_to(JobSuperseded) as heard:
        async with running(pool, Note, context=World(), lease=1) as handle:
            job_id = await hold_unknown(pool, conn, handle.session)
            Note().enqueue(conn)  # only a runner that has claimed since the last time compares
            await heard.wait_for()
    given_back = "gave back 1 jobs that this runner held without knowing"
    check_told(heard, handle.session, job_id, caplog.text, given_back)


async def test_by_the_end_of_the_session(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 26, guarantee 6: and it counts among those that were given back."""
    with listening_to(JobSuperseded) as heard:
        async with running(pool, Note, context=World()) as handle:
            job_id = await hold_unknown(pool, conn, handle.session)
            assert heard == []
    given_back = f"runner stopped: session {handle.session}, which gave back 1 jobs"
    check_told(heard, handle.session, job_id, caplog.text, given_back)
