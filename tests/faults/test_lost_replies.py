"""Faults 5 and 13b: a write is carried out and its reply never arrives. Rules 2, 14, 24 and 29."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from anyio import to_thread

from tests.faults.conftest import Say
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, Held, Stage, Twin
from tests.helpers.history import History
from tests.helpers.proxy import Proxy, proxy_to
from tests.helpers.runners import arrived, eventually, hosted, left
from workers import telemetry
from workers.runtime import executor

#: What row 13b of the faults allows.
RUN_WITHIN = 5.0

#: Parts of statements.
CLAIM, COMPLETION = "INTO worker_claims", "workers_complete("


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxy_to(database_url) as started:
        yield started


@pytest.fixture
def stage(history: History) -> Iterator[Stage]:
    """The context of the jobs; writes that were refused are in the history too."""
    stage = Stage("here", history.add)
    with telemetry.subscribe(
        lambda event: stage.note("fenced", job=event.job_id), telemetry.JobFenced
    ):
        yield stage


async def test_jobs_of_a_claim_whose_reply_was_lost_run_soon(
    conn: psycopg.Connection, proxy: Proxy, history: History, stage: Stage, say: Say
) -> None:
    """Rule 2: what stands under the token of a lost claim is given back before anything else is claimed."""
    async with hosted(proxy.url, stage, Brief) as handle:
        lost = proxy.lose_reply(CLAIM, times=2, rows=True)
        ids = Brief.enqueue_batch(conn, [Brief(key=key) for key in range(20)])
        enqueued_at = time.monotonic()
        ended = await arrived(history, "end", count=len(ids))
        session = handle.session
    lost.wait(2)

    say(f"jobs of two lost claims ran after {ended[-1].at - enqueued_at:.2f} s")
    assert ended[-1].at - enqueued_at < RUN_WITHIN
    assert Counter(event.job for event in history.events("start")) == dict.fromkeys(ids, 1)
    assert {event.session for event in ended} == {session}
    assert history.events("fenced") == []
    assert left(conn) == dict.fromkeys(left(conn), 0)


async def test_a_claim_that_lands_after_it_was_given_up_strands_nothing(
    conn: psycopg.Connection, database_url: str, proxy: Proxy, history: History, stage: Stage
) -> None:
    """Rule 2: the server is still at the claim when the runner gives back what stands under its token."""
    async with hosted(proxy.url, stage, Brief, listen=False) as handle:
        with psycopg.connect(database_url) as blocker:
            # a claim locks the row of its session
            blocker.execute(
                "SELECT FROM worker_sessions WHERE id = %s FOR UPDATE", [handle.session]
            )
            ids = Brief.enqueue_batch(conn, [Brief(key=key) for key in range(20)])
            await to_thread.run_sync(eventually, lambda: _blocked(conn) == 1)
            proxy.cut(CLAIM)
            # having given up that one, the runner claims again, and has to wait as well
            await to_thread.run_sync(eventually, lambda: _blocked(conn) == 2)
            blocker.rollback()
        landed_at = time.monotonic()
        ended = await arrived(history, "end", count=len(ids))
    assert ended[-1].at - landed_at < RUN_WITHIN
    assert Counter(event.job for event in history.events("start")) == dict.fromkeys(ids, 1)
    assert history.events("fenced") == []
    assert left(conn) == dict.fromkeys(left(conn), 0)


async def test_a_completion_whose_reply_was_lost_is_already_done(
    conn: psycopg.Connection, proxy: Proxy, history: History, stage: Stage
) -> None:
    """Rule 14: on the second try nothing is found, which is neither a stale claim nor a reason to run the job again."""
    async with hosted(proxy.url, stage, Brief, Held):
        ids = Held.enqueue_batch(conn, [Held(key=key) for key in range(5)])
        await arrived(history, "start", count=len(ids))
        lost = proxy.lose_reply(COMPLETION)
        stage.open()
        await to_thread.run_sync(lost.wait)
        # the runner is well: it goes on with others
        others = Brief.enqueue_batch(conn, [Brief(key=key) for key in range(5)])
        await arrived(history, "end", count=len(ids) + len(others))
    assert Counter(event.job for event in history.events("start")) == dict.fromkeys(
        [*ids, *others], 1
    )
    assert history.events("fenced") == []
    assert left(conn) == dict.fromkeys(left(conn), 0)


async def test_a_commit_of_a_transactional_job_whose_reply_was_lost_is_already_done(
    conn: psycopg.Connection, proxy: Proxy, history: History, stage: Stage
) -> None:
    """Rule 16 and guarantee 3: its effects are there once, and it is not run again."""
    conn.execute(EFFECTS)
    async with hosted(proxy.url, stage, Effect):
        lost = proxy.lose_reply("COMMIT")
        job = Effect(key=1).enqueue(conn)
        await to_thread.run_sync(lost.wait)
        other = Effect(key=2).enqueue(conn)
        await arrived(history, "end", where=lambda event: event.job == other)
    assert conn.execute("SELECT job FROM effects ORDER BY job").fetchall() == [(job,), (other,)]
    assert Counter(event.job for event in history.events("start")) == {job: 1, other: 1}
    assert history.events("fenced") == []
    assert left(conn) == dict.fromkeys(left(conn), 0)


async def test_a_commit_that_nobody_can_be_asked_about_is_not_a_stale_claim(
    conn: psycopg.Connection,
    proxy: Proxy,
    history: History,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule 14: the job counts as failed, for want of an answer; that its row is gone then is no news."""
    monkeypatch.setattr(executor, "_COMMIT_PAUSES", ())
    conn.execute(EFFECTS)
    async with hosted(proxy.url, stage, Effect):
        lost = proxy.lose_reply("COMMIT")
        job = Effect(key=1).enqueue(conn)
        await to_thread.run_sync(lost.wait)
        other = Effect(key=2).enqueue(conn)
        await arrived(history, "end", where=lambda event: event.job == other)
    assert conn.execute("SELECT job FROM effects ORDER BY job").fetchall() == [(job,), (other,)]
    assert history.events("fenced") == []
    assert left(conn) == dict.fromkeys(left(conn), 0)


def test_an_enqueue_that_is_repeated_because_its_reply_was_lost_is_not_doubled(
    conn: psycopg.Connection, proxy: Proxy
) -> None:
    """Rule 24: whoever does not know whether a deduplicated job was committed enqueues it again, without harm."""
    for statement, in_transaction in (("COMMIT", True), ("workers_enqueue_deduplicated", False)):
        lost = proxy.lose_reply(statement)
        job = Twin(key=int(in_transaction))
        with (
            pytest.raises(psycopg.OperationalError),
            psycopg.connect(proxy.url, autocommit=not in_transaction) as producer,
        ):
            job.enqueue(producer)
        lost.wait()
        with psycopg.connect(proxy.url) as producer:
            assert job.enqueue(producer) is None
        assert left(conn)["background_jobs"] == 1
        conn.execute("DELETE FROM background_jobs")


def _blocked(conn: psycopg.Connection) -> int:
    """How many claims wait for a lock."""
    waiting = """
    SELECT FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND strpos(query, %s) > 0
    """
    return len(conn.execute(waiting, [CLAIM]).fetchall())
