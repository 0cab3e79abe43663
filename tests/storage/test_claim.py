"""Claims: which jobs, in what order, for whom."""

from __future__ import annotations

import json
from typing import Any

import anyio
import psycopg
import pytest

from tests.helpers.running import eventually
from tests.storage.engines import Engine, PostgresEngine, Runner, guards, ids, mail, mails
from workers.job import JobState
from workers.lifecycle import Release
from workers.storage.base import Settled
from workers.storage.postgres.hints import ScanHints


async def test_order(engine: Engine, runner: Runner) -> None:
    """Rules 5 and 8: highest priority first, then in order of position, whatever order the store writes rows in."""
    low = await engine.storage.enqueue(mails(3, priority=-5))
    high = await engine.storage.enqueue(mails(3, priority=32767))
    normal = await engine.storage.enqueue(mails(3))
    assert ids(await runner.take()) == [*high, *normal, *low]


async def test_limit(engine: Engine, runner: Runner) -> None:
    """Rule 1: at most k, the first ones, across priorities."""
    low = await engine.storage.enqueue(mails(4))
    high = await engine.storage.enqueue(mails(2, priority=1))
    assert ids(await runner.take(3)) == [*high, *low[:1]]
    assert ids(await runner.take(2)) == low[1:3]
    assert ids(await runner.take(2)) == low[3:]
    assert await runner.take(2) == []


async def test_complete_says_whether_more_may_wait(engine: Engine, runner: Runner) -> None:
    """Rule 11: a full scan that comes back short has seen the whole queue."""
    await engine.storage.enqueue(mails(3))
    assert not (await runner.claim(2)).complete
    assert (await runner.claim(2)).complete
    assert (await runner.claim(2)).complete


async def test_what_a_claim_shows(engine: Engine, runner: Runner) -> None:
    """A claimed job carries what it takes to run it, with its payload as text (rule 15)."""
    [job_id] = await engine.storage.enqueue([mail(7, priority=3)])
    [job] = await runner.take(token=77)
    assert (job.id, job.job_type, job.queue, job.priority, job.token) == (
        job_id,
        "mail",
        "default",
        3,
        77,
    )
    assert (job.retries, job.crashes, job.deduplicated) == (0, 0, False)
    assert json.loads(job.data) == {"number": 7}
    found = await engine.storage.find(job.id)
    assert found is not None
    assert found.state is JobState.RUNNING


async def test_queue_and_types(engine: Engine, runner: Runner) -> None:
    """Rule 6: the row's queue decides, and unknown types are left alone (guarantee 7)."""
    await engine.storage.enqueue([mail(queue="other"), mail(job_type="unknown"), mail(queue=None)])
    [wanted] = await engine.storage.enqueue([mail(job_type="report")])
    assert ids(await runner.take(types=("mail", "report"))) == [wanted]
    assert await runner.take(types=()) == []


async def test_unknown_types_do_not_hide_known_ones(engine: Engine, runner: Runner) -> None:
    """Rule 6: unknown rows in front do not use up the limit."""
    await engine.storage.enqueue(mails(5, job_type="unknown", priority=9))
    known = await engine.storage.enqueue(mails(2))
    assert ids(await runner.take(2)) == known


async def test_a_claimed_job_cannot_be_claimed(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Guarantee 2: at most one claim on a job."""
    await engine.storage.enqueue(mails(3))
    assert len(await runner.take()) == 3
    assert await other.take() == []
    assert await runner.take() == []


async def test_concurrent_claims(engine: Engine, runner: Runner, other: Runner) -> None:
    """Guarantee 2: of many claims at the same time no two take the same job, and all jobs are taken."""
    enqueued = await engine.storage.enqueue(mails(60))
    taken: list[int] = []

    async def drain(by: Runner) -> None:
        # a claim may find every row locked by another one: only the store's own word ends it
        while len(taken) < 60:
            taken.extend(ids(await by.take(3)))

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(drain, runner)
            tasks.start_soon(drain, other)
    assert sorted(taken) == enqueued


async def test_waiting_for_a_time(engine: Engine, runner: Runner) -> None:
    """Rule 8: scheduled rows are not available."""
    await engine.storage.enqueue([mail(delay=60)])
    assert await runner.take() == []


@pytest.mark.parametrize("thorough", [True, False])
async def test_unknown_session_claims_nothing(
    engine: Engine, runner: Runner, thorough: bool
) -> None:
    """Rule 4: a claim needs a session that is there."""
    await engine.storage.enqueue(mails(2))
    stranger = Runner(engine, runner.control, runner.session + 100)
    claimed = await stranger.claim(thorough=thorough)
    assert list(claimed.jobs) == []
    assert not claimed.complete  # nothing was looked at: "the queue is empty" must not be concluded
    assert engine.claims_of(stranger.session) == {}
    assert len(await runner.take(thorough=thorough)) == 2


@pytest.mark.parametrize("suspects", [0, 9])
async def test_dead_session_claims_nothing(
    engine: Engine, runner: Runner, other: Runner, suspects: int
) -> None:
    """Rule 4: a claim in flight when its session was reaped takes nothing."""
    [job_id] = await engine.storage.enqueue(mails(1))
    assert job_id is not None
    if suspects:
        engine.change(job_id, crashes=1)
    await runner.crash()
    other.maintain()
    engine.advance(1)
    assert other.maintain().rescue  # dead, and its row is still there
    claimed = await runner.claim(suspects=suspects)
    assert list(claimed.jobs) == []
    assert not claimed.complete
    assert len(await other.take(suspects=suspects)) == 1


async def test_suspects_are_claimed_by_suspect_scans_only(engine: Engine, runner: Runner) -> None:
    """Rule 20: a job that was claimed when its process died is claimed apart."""
    plain, once, often = [job_id or 0 for job_id in await engine.storage.enqueue(mails(3))]
    engine.change(once, crashes=1)
    engine.change(often, crashes=6)
    assert ids(await runner.take()) == [plain]
    suspect = await runner.claim(suspects=5)
    assert [(job.id, job.crashes) for job in suspect.jobs] == [(once, 1)]
    assert not suspect.complete
    assert ids(await runner.take(suspects=32767)) == [often]


async def test_suspects_keep_to_the_same_order_and_filters(engine: Engine, runner: Runner) -> None:
    """Rule 20, rule 6: suspect scans look at queue, type, priority and limit like others."""
    await engine.storage.enqueue([mail(queue="other"), mail(job_type="unknown")])
    wanted = await engine.storage.enqueue([mail(1), mail(2, priority=5), mail(3)])
    for job_id in range(1, 6):
        engine.change(job_id, crashes=1)
    assert ids(await runner.take(2, suspects=5)) == [wanted[1], wanted[0]]
    assert ids(await runner.take(2, suspects=5)) == [wanted[2]]


async def test_hinted_claims_find_what_is_new(engine: Engine, runner: Runner) -> None:
    """Rule 11: after the first claim the engine may scan from where it ended; new rows lie behind that."""
    await engine.storage.enqueue(mails(5))
    assert len(await runner.take(3, thorough=False)) == 3
    assert len(await runner.take(10, thorough=False)) == 2
    later = await engine.storage.enqueue(mails(2))
    assert ids(await runner.take(10, thorough=False)) == later


async def test_a_drained_priority_hides_no_other(
    engine: Engine, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 11: a first scan that ended at its limit saw nothing of lower priorities; when its own are drained, the same
    claim goes on with them."""
    monkeypatch.setattr(
        ScanHints, "is_costly", False
    )  # however slow the machine is: else the next claim does
    high = await engine.storage.enqueue(mails(5, priority=9))
    low = await engine.storage.enqueue(mails(5))
    assert ids(await runner.take(4)) == high[:4]
    jobs = await runner.take(4, thorough=False, token=4000)
    assert ids(jobs) == [*high[4:], *low[:3]]
    assert engine.claims_of(runner.session)[4000] == set(ids(jobs))
    assert (await engine.storage.release_claim(runner.session, 4000)).count == 4


async def test_released_jobs_are_found_again(engine: Engine, runner: Runner) -> None:
    """Rule 8: a row that becomes available again gets a new position, behind the others of its priority."""
    await engine.storage.enqueue(mails(3))
    [first] = await runner.take(1, thorough=False)
    await runner.settle([first], Release())
    assert ids(await runner.take(10, thorough=False))[-1] == first.id


async def test_release_of_a_claim_whose_reply_was_lost(engine: Engine, runner: Runner) -> None:
    """Rule 2: whatever stands under the token goes back, uncounted, and nothing else."""
    await engine.storage.enqueue(mails(5))
    await runner.take(2, token=5000)
    [kept] = await runner.take(1, token=5001)
    assert (await engine.storage.release_claim(runner.session, 5000)).count == 2
    runner.control.release([])  # claims under which nothing stands any more are forgotten
    assert set(engine.claims_of(runner.session)) == {5001}
    again = await runner.take()
    assert len(again) == 4
    assert all(job.retries == job.crashes == 0 for job in again)
    assert await runner.complete([kept]) == {kept.id}


async def test_a_scan_that_lands_while_its_claim_is_given_back_is_found(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2: the reply of a claim was lost, whose second scan is still under way on the server."""
    runner, settle = postgres.runner(), postgres.storage.settle
    first, late = await postgres.storage.enqueue(mails(2))
    assert ids(await runner.take(1, token=5000)) == [first]

    async def in_between(*args: Any) -> Settled:
        assert ids(await runner.take(1, token=5000)) == [late]
        return await settle(*args)

    monkeypatch.setattr(postgres.storage, "settle", in_between)
    assert (await postgres.storage.release_claim(runner.session, 5000)).count == 1
    assert late in postgres.claims_of(runner.session)[5000]
    assert runner.control.close().count == 1


@pytest.mark.parametrize("alive", [True, False])
async def test_what_a_scan_adds_to_a_claim_that_is_being_forgotten_is_found(
    postgres: PostgresEngine, conn: psycopg.Connection, database_url: str, alive: bool
) -> None:
    """Rule 2: by the session itself, or by the sweep once it is dead. Nothing else leads to these jobs."""
    runner, sweeper = postgres.runner(), postgres.runner("sweeper")
    first, late = await postgres.storage.enqueue(mails(2))
    jobs = await runner.take(1, token=5000)
    await runner.complete(jobs)
    if not alive:
        conn.execute("UPDATE worker_sessions SET alive = false WHERE id = %s", [runner.session])
    with psycopg.connect(database_url) as other:  # a scan that is on its way
        other.execute(
            "INSERT INTO worker_claims (session_id, token, ids) VALUES (%(session)s, 5000, ARRAY[%(first)s]::bigint[])"
            " ON CONFLICT (session_id, token) DO UPDATE SET ids = excluded.ids",
            {"session": runner.session, "first": first},
        )
        other.commit()
        other.execute(
            "UPDATE worker_claims SET ids = ids || %s::bigint WHERE session_id = %s",
            [late, runner.session],
        )
        other.execute(
            "UPDATE background_jobs SET session_id = %s, claim_token = 5000", [runner.session]
        )
        forget = sweeper.control.rescue if not alive else lambda: runner.control.release([])
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, forget)
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%claims%%'"
            await eventually(conn, waits.replace("%%", "%"), [(1,)])
            other.commit()
    assert postgres.claims_of(runner.session) == {5000: {first, late}}
    if alive:
        assert runner.control.close().count == 1
    else:
        assert [dead.jobs for dead in sweeper.control.rescue()] == [1]
        assert postgres.claims_of(runner.session) == {}


async def test_release_of_a_claim_that_never_was(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 2: releasing an unknown token, or another session's, changes nothing."""
    await engine.storage.enqueue(mails(1))
    jobs = await runner.take(token=6000)
    assert (await engine.storage.release_claim(runner.session, 6001)).count == 0
    assert (await engine.storage.release_claim(other.session, 6000)).count == 0
    assert await runner.complete(jobs) == set(ids(jobs))


async def test_release_of_partly_finished_claim(engine: Engine, runner: Runner) -> None:
    """Rule 2: jobs that were finished under the token stay finished."""
    await engine.storage.enqueue([*mails(2), *mails(2, deduplicated=True)])
    jobs = await runner.take(token=7000)
    done = [jobs[0], jobs[2]]
    await runner.complete(done)
    assert (await engine.storage.release_claim(runner.session, 7000)).count == 2
    assert sorted(ids(await runner.take())) == sorted({*ids(jobs)} - {*ids(done)})


async def test_claims_are_known_to_the_session(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rules 2 and 3: from a session to its rows; what it does not hold it can release."""
    enqueued = await engine.storage.enqueue(mails(5))
    first = await runner.take(2, token=8000)
    await runner.take(3, token=8001)
    assert {token: set(held) for token, held in runner.control.claims().items()} == {
        8000: set(enqueued[:2]),
        8001: set(enqueued[2:]),
    }
    assert other.control.claims() == {}
    assert runner.control.release(guards(first)).count == 2
    assert set(runner.control.claims()) == {8001}
    assert other.control.release(guards(await runner.take())).count == 0


async def test_claims_are_forgotten_when_closed(engine: Engine, runner: Runner) -> None:
    """Rule 3: closed tokens leave no trace, whichever verb closes them; an unknown one is harmless."""
    await engine.storage.enqueue(mails(4))
    first, second, third, fourth = [
        await runner.take(1, token=9000 + number) for number in range(4)
    ]
    await runner.complete(first, closed=[9000])
    await runner.settle(second, Release(), closed=[9001, 4711])
    assert set(runner.control.claims()) == {9002, 9003}
    await engine.storage.complete(runner.session, [], [9002])
    await engine.storage.settle(runner.session, [], [9003])
    assert runner.control.claims() == {}
    assert await runner.complete([*third, *fourth]) == set(ids([*third, *fourth]))


async def test_a_claim_ends_without_touching_those_of_others(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 3: tokens are a runner's own numbers, and two runners may use the same."""
    await engine.storage.enqueue(mails(4))
    first, second = await runner.take(2, token=7), await other.take(2, token=7)
    await runner.complete(first[:1])
    await runner.complete(first[1:], closed=[7])
    assert engine.claims_of(other.session) == {7: set(ids(second))}
    await engine.storage.enqueue(mails(2))
    third = await runner.take(token=7)
    await runner.settle(third, Release(), closed=[7])
    assert engine.claims_of(other.session) == {7: set(ids(second))}
    await other.settle(second, Release(), closed=[7])
    assert engine.claims_of(other.session) == {}


async def test_release_of_a_lost_claim_spares_what_was_claimed_again(
    engine: Engine, runner: Runner
) -> None:
    """Rule 2: only what stands under that very token goes back."""
    await engine.storage.enqueue(mails(1))
    await runner.settle(await runner.take(token=101), Release())  # the claim's row is still there
    [job] = await runner.take(token=102)
    assert (await engine.storage.release_claim(runner.session, 101)).count == 0
    assert await runner.complete([job]) == {job.id}
