"""Reading: counts, records and lists; and requeueing what is dead."""

from __future__ import annotations

import pytest

from tests.storage.engines import Engine, Runner, ids, mail, mails
from workers.job import JobState
from workers.lifecycle import Archive, Bury, Retry
from workers.storage.base import QueueStats


async def one_of_each(engine: Engine, runner: Runner) -> dict[JobState, int]:
    """A job in every state, by state."""
    jobs = await engine.storage.enqueue(mails(5))
    running, retryable, completed, cancelled, dead = await runner.take()
    assert ids([running, retryable, completed, cancelled, dead]) == jobs
    transitions = (
        Retry(60.0, "boom"),
        Archive("completed"),
        Archive("cancelled", "no"),
        Bury("over", "bang"),
    )
    await runner.settle([retryable, completed, cancelled, dead], *transitions)
    available, scheduled = await engine.storage.enqueue([mail(6), mail(7, delay=60)])
    return {
        JobState.RUNNING: running.id,
        JobState.RETRYABLE: retryable.id,
        JobState.COMPLETED: completed.id,
        JobState.CANCELLED: cancelled.id,
        JobState.DEAD: dead.id,
        JobState.AVAILABLE: available or 0,
        JobState.SCHEDULED: scheduled or 0,
    }


async def test_stats(engine: Engine, runner: Runner) -> None:
    """Counts per queue and state; rows without a queue under an empty name."""
    assert await engine.storage.stats() == []
    await one_of_each(engine, runner)
    await engine.storage.enqueue([*mails(2, queue="slow"), mail(queue=None)])
    engine.advance(30)
    homeless, default, slow = await engine.storage.stats()
    assert [each.queue for each in (homeless, default, slow)] == ["", "default", "slow"]
    assert (homeless.available, slow.available) == (1, 2)
    counts = {name: getattr(default, name) for name in QueueStats.__struct_fields__[1:-1]}
    assert counts == dict.fromkeys(counts, 1) | {"archived": 2}
    assert all(30 <= each.oldest < 60 for each in (homeless, default, slow))


async def test_find_in_every_state(engine: Engine, runner: Runner) -> None:
    """One job, wherever it stands; None when it is nowhere."""
    for state, job_id in (await one_of_each(engine, runner)).items():
        record = await engine.storage.find(job_id)
        assert record is not None
        assert (record.id, record.state) == (job_id, state)
        ended = state in (JobState.COMPLETED, JobState.CANCELLED, JobState.DEAD)
        assert (record.finished_at is not None) == ended
        assert (record.run_at is not None) == (state in (JobState.SCHEDULED, JobState.RETRYABLE))
        assert record.created_at.utcoffset() is not None
    assert await engine.storage.find(4711) is None
    assert await engine.storage.find(-1) is None


async def test_list_by_state(engine: Engine, runner: Runner) -> None:
    """Each state lists its own."""
    expected = await one_of_each(engine, runner)
    for state in JobState:
        assert ids(await engine.storage.list_jobs(state)) == [expected[state]]


async def test_list_in_pages(engine: Engine, runner: Runner) -> None:
    """In id order, `limit` at a time, after the last id seen."""
    enqueued = await engine.storage.enqueue(mails(7))
    pages, after = [], 0
    while page := await engine.storage.list_jobs(JobState.AVAILABLE, limit=3, after=after):
        pages.append(ids(page))
        after = page[-1].id
    assert pages == [enqueued[:3], enqueued[3:6], enqueued[6:]]


async def test_failed_jobs(engine: Engine, runner: Runner) -> None:
    """What `check_for_failed_jobs` asks: everything that failed at least once, dead ones included."""
    assert await engine.storage.failed_jobs() == (0, [])
    await engine.storage.enqueue(mails(6))
    jobs = await runner.take()
    await runner.settle(jobs[:2], Retry(0.0, "boom"))
    await runner.settle(jobs[2:4], Bury("over", "boom"))
    await runner.settle(jobs[4:5], Archive("completed"))
    assert await engine.storage.failed_jobs() == (4, ids(jobs[:4]))
    assert await engine.storage.failed_jobs(limit=2) == (4, ids(jobs[:2]))


@pytest.mark.parametrize("deduplicated", [False, True])
async def test_requeue(engine: Engine, runner: Runner, deduplicated: bool) -> None:
    """A dead job gets another life with fresh counters, under its own id, keeping its last error."""
    settings = {"deduplicated": deduplicated, "priority": 3, "queue": "slow"}
    await engine.storage.enqueue(mails(2, **settings))
    jobs = await runner.take(queue="slow")
    await runner.settle(jobs, Retry(0.0, "boom"))
    await runner.settle(await runner.take(queue="slow"), Bury("over", "bang"))
    assert await engine.storage.requeue([jobs[1].id, 4711, jobs[0].id, jobs[0].id]) == ids(jobs)
    assert await engine.storage.requeue(ids(jobs)) == []
    record = await engine.storage.find(jobs[0].id)
    assert record is not None
    assert (record.state, record.last_error, record.reason) == (JobState.AVAILABLE, "bang", None)
    again = await runner.take(queue="slow")
    assert ids(again) == ids(jobs)
    assert [(job.retries, job.crashes, job.priority) for job in again] == [(0, 0, 3)] * 2
    assert [job.deduplicated for job in again] == [deduplicated] * 2


async def test_only_dead_jobs_are_requeued(engine: Engine, runner: Runner) -> None:
    """A job that waits, runs or was archived is not touched."""
    states = await one_of_each(engine, runner)
    assert await engine.storage.requeue(list(states.values())) == [states.pop(JobState.DEAD)]
    for state, job_id in states.items():
        record = await engine.storage.find(job_id)
        assert record is not None
        assert record.state is state


async def test_requeued_jobs_stand_behind_the_others(engine: Engine, runner: Runner) -> None:
    """Rule 8: they are available again, so their positions are new."""
    await engine.storage.enqueue(mails(1))
    [dead] = await runner.take(thorough=False)
    await runner.settle([dead], Bury("over"))
    waiting = await engine.storage.enqueue(mails(2))
    await engine.storage.requeue([dead.id])
    assert ids(await runner.take()) == [*waiting, dead.id]


async def test_requeued_jobs_come_in_the_order_of_their_ids(engine: Engine, runner: Runner) -> None:
    """Rule 5: in whatever order they are named, and died."""
    await engine.storage.enqueue(mails(5))
    jobs = await runner.take()
    for job in (jobs[3], jobs[0], jobs[4], jobs[1], jobs[2]):
        await runner.settle([job], Bury("over"))
    named = [jobs[index].id for index in (2, 4, 0, 3, 1)]
    assert await engine.storage.requeue(named) == ids(jobs)
    assert ids(await runner.take()) == ids(jobs)
