"""Fault 4: the database crashes and comes back, with fsync on. Rules 14 and 19; guarantees 1 to 4."""

from __future__ import annotations

import signal
from collections import Counter

import psycopg
import pytest
from anyio import to_thread
from psycopg_pool import AsyncConnectionPool
from psycopg_pool.base import AttemptWithBackoff

from tests.faults.conftest import Say
from tests.helpers.fault_jobs import (
    EFFECTS,
    Brief,
    Effect,
    EffectInThread,
    Held,
    HeldInThread,
    Stage,
)
from tests.helpers.history import History, saying
from tests.helpers.nursery import Nursery
from tests.helpers.own_server import OwnServer
from tests.helpers.processes import crew
from tests.helpers.runners import arrived, eventually, hosted, left

#: What row 4 of the faults allows.
ON_WITHIN = 10.0


@pytest.mark.parametrize("how", ["immediate", "kill"])
def test_running_jobs_outlive_a_crash_of_the_server(
    how: str,
    server_to_crash: OwnServer,
    crash_url: str,
    forks: Nursery,
    history: History,
    say: Say,
) -> None:
    """Rule 19: every claim is kept, jobs that run through the crash are not run again, nothing is lost, all go on."""
    with psycopg.connect(crash_url, autocommit=True) as conn:
        conn.execute(EFFECTS)
        types = "brief,held,held_in_thread,effect,effect_in_thread"
        with crew(forks, crash_url, history) as workers:
            members = [workers.start(types, workers=10) for _ in range(2)]
            sessions = {member.ready() for member in members}
            held = [
                *Held.enqueue_batch(conn, [Held(key=key) for key in range(4)]),
                *HeldInThread.enqueue_batch(conn, [HeldInThread(key=key) for key in range(4)]),
            ]
            history.wait_for("start", count=len(held))
            brief = Brief.enqueue_batch(conn, [Brief(key=key, seconds=0.02) for key in range(300)])
            effects = [
                *Effect.enqueue_batch(conn, [Effect(key=key, seconds=0.01) for key in range(40)]),
                *EffectInThread.enqueue_batch(
                    conn, [EffectInThread(key=key, seconds=0.01) for key in range(40)]
                ),
            ]
            for number in (1, 2):
                history.wait_for("end", count=number * 80)
                if how == "kill":
                    server_to_crash.kill()
                else:
                    server_to_crash.stop_at_once()
                history.wait_for("log", count=2 * number, where=saying("connection is lost"))
                server_to_crash.start()
            more = _enqueue_again(crash_url)
            up = server_to_crash.up_since
            started = history.wait_for("start", where=lambda event: event.job in more)
            back = history.wait_for("log", count=4, where=saying("goes on"))
            say(
                f"sessions back {back[-1].at - up:.2f} s after the server,"
                f" new jobs started after {started[0].at - up:.2f} s"
            )
            assert started[0].at - up < ON_WITHIN
            for member in members:
                member.open()
            with psycopg.connect(crash_url, autocommit=True) as after:
                eventually(lambda: left(after)["background_jobs"] == 0)
                for member in members:
                    member.send(signal.SIGTERM)
                assert [member.wait() for member in members] == [0, 0]
                done = after.execute("SELECT job FROM effects").fetchall()
                assert left(after) == dict.fromkeys(left(after), 0)
    assert history.check([*held, *brief, *effects, *more]).lost == []
    starts = Counter(event.job for event in history.events("start"))
    once = {*held, *brief}
    assert {job: n for job, n in starts.items() if job in once} == dict.fromkeys(once, 1)
    assert Counter(job for (job,) in done) == dict.fromkeys(effects, 1)
    assert {event.session for event in history.events("start")} == sessions
    assert history.events("rescued", "session lost", "fenced") == []


def _enqueue_again(url: str) -> list[int | None]:
    with psycopg.connect(url, autocommit=True) as conn:
        return Brief.enqueue_batch(conn, [Brief(key=key) for key in range(1000, 1010)])


async def test_a_pool_that_is_slow_to_come_back_is_not_waited_for(
    server_to_crash: OwnServer,
    crash_url: str,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    say: Say,
) -> None:
    """A pool looks after an outage as long again until it finds the server back; its runner does not (rule 17).

    Nor do transactional jobs stumble over one dead connection after the other.
    """
    monkeypatch.setattr(AttemptWithBackoff, "INITIAL_DELAY", 60.0)
    stage = Stage("here", history.add)
    with psycopg.connect(crash_url, autocommit=True) as conn:
        conn.execute(EFFECTS)
        pool = AsyncConnectionPool(crash_url, min_size=2, max_size=2, open=False)
        async with pool, hosted(pool, stage, Brief, Effect, EffectInThread):
            before = [
                *Effect.enqueue_batch(conn, [Effect(key=key, seconds=0.1) for key in range(5)]),
                *EffectInThread.enqueue_batch(
                    conn, [EffectInThread(key=key, seconds=0.1) for key in range(5)]
                ),
            ]
            await arrived(history, "end", count=len(before))
            server_to_crash.stop_at_once()
            for _ in range(2):
                with pytest.raises(psycopg.OperationalError):
                    async with pool.connection(timeout=0.5) as lost:
                        await lost.execute("SELECT 1")
            # both of its connections are lost, and it has tried in vain to replace them
            await to_thread.run_sync(
                eventually, lambda: pool.get_stats().get("connections_errors", 0) >= 2
            )
            server_to_crash.start()
            with psycopg.connect(crash_url, autocommit=True) as again:
                after = [
                    *Brief.enqueue_batch(again, [Brief(key=key) for key in range(5)]),
                    *Effect.enqueue_batch(again, [Effect(key=key) for key in range(5)]),
                    *EffectInThread.enqueue_batch(again, [EffectInThread() for _ in range(5)]),
                ]
            ended = await arrived(history, "end", count=15, where=lambda event: event.job in after)
            up = server_to_crash.up_since
            say(f"all jobs done {ended[-1].at - up:.2f} s after the server was up")
            assert ended[-1].at - up < 5.0
