"""Outcomes: every transition, and the guard that each write has to show."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.storage.engines import Engine, Runner, ids, mail, mails
from workers.job import ClaimedJob, JobRecord, JobState
from workers.lifecycle import MAX_DELAY, Archive, Bury, Delete, Release, Retry, Transition, Wait
from workers.storage.base import Guard, Settlement

EVERY_TRANSITION: list[Transition] = [
    Delete(),
    Archive("completed"),
    Archive("cancelled", "not needed"),
    Retry(60.0, "boom"),
    Retry(0.0, "boom"),
    Wait(60.0),
    Wait(0.0),
    Release(),
    Bury("over", "boom"),
    Bury("crashed", attempted=False),
]


async def found(engine: Engine, job_id: int) -> JobRecord:
    record = await engine.storage.find(job_id)
    assert record is not None
    return record


async def claimed(
    engine: Engine, runner: Runner, how_many: int = 1, **settings: object
) -> list[ClaimedJob]:
    await engine.storage.enqueue(mails(how_many, **settings))
    jobs = await runner.take(how_many)
    assert len(jobs) == how_many
    return jobs


async def test_complete_deletes(engine: Engine, runner: Runner) -> None:
    """A completed job is gone."""
    jobs = await claimed(engine, runner, 3)
    assert await runner.complete(jobs[:2]) == set(ids(jobs[:2]))
    assert await engine.storage.find(jobs[0].id) is None
    assert (await found(engine, jobs[2].id)).state is JobState.RUNNING


async def test_complete_twice(engine: Engine, runner: Runner) -> None:
    """Rule 14: the second write finds nothing: fenced, or already done, as the caller knows."""
    jobs = await claimed(engine, runner, 2)
    await runner.complete(jobs)
    assert await runner.complete(jobs) == set()


async def test_empty_batches(engine: Engine, runner: Runner) -> None:
    """An empty batch is fine, everywhere."""
    assert (await engine.storage.complete(runner.session, [], [])).written == []
    settled = await engine.storage.settle(runner.session, [], [])
    assert list(settled.written) == list(settled.superseded) == []
    assert await engine.storage.enqueue([]) == []
    assert await engine.storage.requeue([]) == []
    assert runner.control.release([]).count == 0
    assert runner.control.rescue() == []
    assert await runner.take(types=()) == []


@pytest.mark.parametrize("deduplicated", [False, True])
async def test_stale_tokens_and_other_sessions(
    engine: Engine, runner: Runner, other: Runner, deduplicated: bool
) -> None:
    """Guarantee 2, rule 14: a write that does not show the claim's session and token changes nothing."""
    [job] = await claimed(engine, runner, deduplicated=deduplicated)
    for session, guard in (
        (runner.session, Guard(job.id, job.token + 1000)),
        (other.session, Guard(job.id, job.token)),
    ):
        assert (await engine.storage.complete(session, [guard], [])).written == []
        for transition in EVERY_TRANSITION:
            settled = await engine.storage.settle(
                session, [Settlement(guard, deduplicated, transition)], []
            )
            assert list(settled.written) == list(settled.superseded) == []
        assert other.control.release([guard]).count == 0
    assert (await found(engine, job.id)).state is JobState.RUNNING
    assert await runner.complete([job]) == {job.id}


async def test_a_batch_of_several_claims_is_exact_per_pair(engine: Engine, runner: Runner) -> None:
    """Rule 14: in a batch each id must come with its own claim's token."""
    await engine.storage.enqueue(mails(6))
    first, second = await runner.take(3), await runner.take(3)
    mixed = [
        Guard(first[0].id, first[0].token),
        Guard(
            first[1].id, second[0].token
        ),  # a token of this session and of this batch, but not this job's
        Guard(second[0].id, second[0].token),
        Guard(second[1].id, first[0].token),
    ]
    done = await engine.storage.complete(runner.session, mixed, [])
    assert set(done.written) == {first[0].id, second[0].id}
    for transition in EVERY_TRANSITION:
        swapped = [Guard(first[1].id, second[1].token), Guard(second[1].id, first[1].token)]
        items = [Settlement(guard, False, transition) for guard in swapped]
        settled = await engine.storage.settle(runner.session, items, [])
        assert list(settled.written) == list(settled.superseded) == []
    left = [*first[1:], *second[1:]]
    assert await runner.complete(left) == set(ids(left))


async def test_a_claim_made_anew_fences_the_old_one(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Guarantee 2: what was given back and claimed again is no longer the first claim's."""
    [job] = await claimed(engine, runner)
    await engine.storage.release_claim(runner.session, job.token)
    [again] = await other.take()
    assert await runner.complete([job]) == set()
    assert await other.complete([again]) == {job.id}


async def test_archive(engine: Engine, runner: Runner) -> None:
    """Archived as completed or cancelled, with the reason, and out of the hot table."""
    jobs = await claimed(engine, runner, 2)
    settled = await runner.settle(jobs, Archive("completed"), Archive("cancelled", "not needed"))
    assert sorted(settled.written) == ids(jobs)
    completed, cancelled = [await found(engine, job.id) for job in jobs]
    assert (completed.state, completed.reason) == (JobState.COMPLETED, None)
    assert (cancelled.state, cancelled.reason) == (JobState.CANCELLED, "not needed")
    assert completed.finished_at is not None
    assert completed.retries == cancelled.retries == 0
    assert await runner.take() == []


async def test_retry(engine: Engine, runner: Runner) -> None:
    """Guarantee 6: a failed attempt is counted when it is written, and the row waits."""
    [job] = await claimed(engine, runner)
    engine.advance(10)
    settled = await runner.settle([job], Retry(60.0, "boom"))
    assert list(settled.written) == [job.id]
    record = await found(engine, job.id)
    assert (record.state, record.retries, record.crashes) == (JobState.RETRYABLE, 1, 0)
    assert record.last_error == "boom"
    assert record.last_retry - record.created_at >= timedelta(seconds=9.9)
    assert record.run_at is not None
    assert timedelta(seconds=59) < record.run_at - record.last_retry < timedelta(seconds=61)
    assert await runner.take() == []


async def test_snooze_counts_nothing(engine: Engine, runner: Runner) -> None:
    """Guarantee 6: a snoozed job waits, uncounted, and keeps the error of an earlier attempt."""
    [job] = await claimed(engine, runner)
    await runner.settle([job], Retry(0.0, "boom"))
    [again] = await runner.take()
    await runner.settle([again], Wait(60.0))
    record = await found(engine, job.id)
    assert (record.state, record.retries, record.last_error) == (JobState.RETRYABLE, 1, "boom")
    engine.advance(60)
    runner.maintain()
    assert ids(await runner.take()) == [job.id]


async def test_release_counts_nothing(engine: Engine, runner: Runner) -> None:
    """Guarantee 6: an interrupted job goes back uncounted and is available at once."""
    [job] = await claimed(engine, runner)
    before = await found(engine, job.id)
    engine.advance(5)
    await runner.settle([job], Release())
    after = await found(engine, job.id)
    assert (after.state, after.retries, after.crashes) == (JobState.AVAILABLE, 0, 0)
    assert after.last_retry - after.created_at == before.last_retry - before.created_at
    [again] = await runner.take()
    assert (again.id, again.retries) == (job.id, 0)


@pytest.mark.parametrize(
    "transition", [Retry(0.0, "boom"), Wait(0.0), Retry(-5.0, "boom"), Wait(-1e300)]
)
async def test_no_delay_is_available_at_once(
    engine: Engine, runner: Runner, transition: Transition
) -> None:
    """A delay that is over needs no staging."""
    [job] = await claimed(engine, runner)
    await runner.settle([job], transition)
    assert ids(await runner.take()) == [job.id]


async def test_bury(engine: Engine, runner: Runner) -> None:
    """A dead letter keeps payload, counters, reason and error; the last attempt counts, a crash does not."""
    jobs = await claimed(engine, runner, 2)
    await runner.settle(jobs, Bury("over", "boom"), Bury("crashed", attempted=False))
    over, crashed = [await found(engine, job.id) for job in jobs]
    assert (over.state, over.retries, over.reason, over.last_error) == (
        JobState.DEAD,
        1,
        "over",
        "boom",
    )
    assert (crashed.state, crashed.retries, crashed.reason, crashed.last_error) == (
        JobState.DEAD,
        0,
        "crashed",
        None,
    )
    assert over.data == jobs[0].data
    assert await runner.take() == []


async def test_bury_keeps_the_last_error(engine: Engine, runner: Runner) -> None:
    """Guarantee 5: a job that dies without an error of its own still shows the one before."""
    [job] = await claimed(engine, runner)
    await runner.settle([job], Retry(0.0, "boom"))
    await runner.settle(await runner.take(), Bury("crashed", attempted=False))
    record = await found(engine, job.id)
    assert (record.reason, record.last_error) == ("crashed", "boom")


async def test_every_transition_in_one_batch(engine: Engine, runner: Runner) -> None:
    """Rule 14: one settle carries outcomes of all kinds, of ordinary and deduplicated jobs."""
    half = len(EVERY_TRANSITION)
    await engine.storage.enqueue([*mails(half), *mails(half, deduplicated=True, priority=-1)])
    jobs = await runner.take()
    settled = await runner.settle(jobs, *EVERY_TRANSITION, *EVERY_TRANSITION)
    assert sorted(settled.written) == sorted(ids(jobs))
    assert list(settled.superseded) == []
    expected = [
        None,
        JobState.COMPLETED,
        JobState.CANCELLED,
        JobState.RETRYABLE,
        JobState.AVAILABLE,
        JobState.SCHEDULED,
        JobState.AVAILABLE,
        JobState.AVAILABLE,
        JobState.DEAD,
        JobState.DEAD,
    ]
    records = [await engine.storage.find(job.id) for job in jobs]
    assert [record and record.state for record in records] == expected * 2


async def test_one_id_twice_in_a_batch(engine: Engine, runner: Runner) -> None:
    """A job that is settled twice in one batch is written once."""
    [job] = await claimed(engine, runner)
    settled = await runner.settle([job, job], Retry(0.0, "boom"))
    assert list(settled.written) == [job.id]
    assert (await found(engine, job.id)).retries == 1


@pytest.mark.parametrize("deduplicated", [False, True])
@pytest.mark.parametrize("retries", [31, 32, 2**31 - 2, 2**31 - 1])
async def test_retries_never_raise(
    engine: Engine, runner: Runner, retries: int, deduplicated: bool
) -> None:
    """Rule 21: counters stop at 2^31-1, and no number of retries makes a statement raise."""
    capped = min(retries + 1, 2**31 - 1)
    for ending in (Retry(0.0, "boom"), Bury("over", "boom")):
        [job_id] = await engine.storage.enqueue([mail(deduplicated=deduplicated)])
        assert job_id is not None
        engine.change(job_id, retries=retries)
        [job] = await runner.take()
        assert job.retries == retries
        await runner.settle([job], ending)
        assert (await found(engine, job_id)).retries == capped
        await runner.complete(await runner.take())


@pytest.mark.parametrize("deduplicated", [False, True])
@pytest.mark.parametrize("delay", [1e-9, MAX_DELAY, 1e18, 1e300, float("inf")])
async def test_delays_are_bounded(
    engine: Engine, runner: Runner, delay: float, deduplicated: bool
) -> None:
    """Rule 21: no delay makes a statement raise, or the job unreadable."""
    [job] = await claimed(engine, runner, deduplicated=deduplicated)
    settled = await runner.settle([job], Retry(delay, "boom"))
    assert list(settled.written) == [job.id]
    assert (await found(engine, job.id)).retries == 1


async def test_unknown_jobs_are_fenced(engine: Engine, runner: Runner) -> None:
    """Rule 14: an id that does not exist is in neither list."""
    await claimed(engine, runner)
    items = [
        Settlement(Guard(4711, 1), flag, kind)
        for flag in (False, True)
        for kind in EVERY_TRANSITION
    ]
    settled = await engine.storage.settle(runner.session, items, [])
    assert list(settled.written) == list(settled.superseded) == []
