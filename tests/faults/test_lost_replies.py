"""Fault 13b: a claim is carried out and its reply never arrives. Rules 2 and 29. (The simple cases: rows/replies.py.)"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from anyio import to_thread

from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, Stage
from tests.helpers.history import History
from tests.helpers.proxy import Proxy, proxy_to
from tests.helpers.runners import arrived, eventually, hosted, left
from workers import telemetry
from workers.runtime import executor

#: What row 13b of the faults allows.
RUN_WITHIN = 5.0

#: Part of a claim.
CLAIM = "INTO worker_claims"


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


def _blocked(conn: psycopg.Connection) -> int:
    """How many claims wait for a lock."""
    waiting = """
    SELECT FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND strpos(query, %s) > 0
    """
    return len(conn.execute(waiting, [CLAIM]).fetchall())
