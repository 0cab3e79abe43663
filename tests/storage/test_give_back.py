"""Deduplicated jobs on their way back to waiting: they may meet an identical one (rules 25 and 26)."""

from __future__ import annotations

import pytest

from tests.storage.engines import Engine, Runner, guards, ids, mail, mails
from workers.job import ClaimedJob, JobState
from workers.lifecycle import Bury, Release, Retry, Transition, Wait, clears_crashes

BACK = [Retry(0.0, "boom"), Retry(60.0, "boom"), Wait(0.0), Wait(60.0), Release()]
names = pytest.mark.parametrize("transition", BACK, ids=repr)


async def twins(engine: Engine, *runners: Runner, number: int = 1) -> list[ClaimedJob]:
    """Identical deduplicated jobs, all of them running, one on each runner."""
    running = []
    for runner in runners:
        [job_id] = await engine.storage.enqueue([mail(number, deduplicated=True)])
        assert job_id is not None
        running += await runner.take()
    assert len(running) == len(runners)
    return running


async def alive(engine: Engine, *jobs: ClaimedJob) -> list[int]:
    return [job.id for job in jobs if await engine.storage.find(job.id)]


@names
async def test_back_to_waiting(engine: Engine, runner: Runner, transition: Transition) -> None:
    """Rule 26: alone, a job goes back as itself, and is in the way of an identical one again."""
    [job] = await twins(engine, runner)
    settled = await runner.settle([job], transition)
    assert list(settled.written) == [job.id]
    assert list(settled.superseded) == []
    assert await engine.storage.enqueue([mail(1, deduplicated=True)]) == [None]
    engine.advance(60)
    runner.maintain()
    [again] = await runner.take()
    assert (again.id, again.data) == (job.id, job.data)
    assert again.deduplicated


@names
async def test_an_identical_job_waits(
    engine: Engine, runner: Runner, transition: Transition
) -> None:
    """Rule 26: the one that comes back makes way, whether the other is available or waits for a time."""
    for settings in ({}, {"delay": 60.0}):
        [job] = await twins(engine, runner)
        [waiting] = await engine.storage.enqueue([mail(1, deduplicated=True, **settings)])
        settled = await runner.settle([job], transition)
        assert list(settled.written) == []
        assert list(settled.superseded) == [job.id]
        assert await engine.storage.find(job.id) is None
        engine.advance(60)
        runner.maintain()
        done = await runner.take()
        assert ids(done) == [waiting]
        await runner.complete(done)


@names
async def test_two_twins_in_one_batch(
    engine: Engine, runner: Runner, transition: Transition
) -> None:
    """Rule 26, FAULTS 13d: two running twins given back at once raise nothing; one waits, one is superseded."""
    first, second = await twins(engine, runner, runner)
    [bystander] = await twins(engine, runner, number=2)
    settled = await runner.settle([second, bystander, first], transition)
    assert sorted(settled.written) == [first.id, bystander.id]
    assert list(settled.superseded) == [second.id]
    assert await alive(engine, first, second) == [first.id]


async def test_two_twins_on_two_sessions(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rule 26: the second to come back finds the first."""
    first, second = await twins(engine, runner, other)
    assert list((await other.settle([second], Release())).written) == [second.id]
    assert list((await runner.settle([first], Release())).superseded) == [first.id]
    assert ids(await runner.take()) == [second.id]


async def test_twins_of_different_fates(engine: Engine, runner: Runner) -> None:
    """Rule 26: only what goes back to waiting meets anything."""
    first, second, third = await twins(engine, runner, runner, runner)
    settled = await runner.settle(
        [first, second, third], Bury("over"), Retry(60.0, "boom"), Release()
    )
    assert sorted(settled.written) == [first.id, second.id]
    assert list(settled.superseded) == [third.id]


async def test_rescue_of_twins_of_one_session(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 26: rescue gives both back at once; one waits, one is named as superseded, both count as the dead session's."""
    first, second = await twins(engine, runner, runner)
    await runner.crash()
    [dead] = other.bury()
    assert (dead.jobs, dead.superseded) == (2, (second.id,))
    assert await alive(engine, first, second) == [first.id]
    assert ids(await other.take(suspects=5)) == [first.id]


async def test_rescue_of_twins_of_two_sessions(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 26: the same across sessions that died together."""
    third = engine.runner("third")
    first, second = await twins(engine, runner, third)
    await runner.crash()
    await third.crash()
    dead = other.bury()
    assert {found.session: found.jobs for found in dead} == {runner.session: 1, third.session: 1}
    assert await alive(engine, first, second) == [first.id]
    assert engine.sessions() == {other.session}


async def test_rescue_onto_a_waiting_job(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rules 20 and 26: a rescued job makes way like any other, but its crash is not forgotten with it."""
    [lost] = await twins(engine, runner)
    [waiting] = await engine.storage.enqueue([mail(1, deduplicated=True)])
    await runner.crash()
    other.bury()
    assert await engine.storage.find(lost.id) is None
    assert await other.take() == []
    [job] = await other.take(suspects=5)
    assert (job.id, job.crashes) == (waiting, 1)


@pytest.mark.parametrize("how", ["release", "crash", "control"])
async def test_what_was_interrupted_is_not_put_off(
    engine: Engine, runner: Runner, other: Runner, how: str
) -> None:
    """Rule 26: a chain has its next link, an hour from now, already in the queue; that one stays, and begins at once."""
    [job] = await twins(engine, runner)
    [later] = await engine.storage.enqueue([mail(1, deduplicated=True, delay=3600.0)])
    if how == "release":
        assert list((await runner.settle([job], Release())).superseded) == [job.id]
    elif how == "control":
        assert list(runner.control.release(guards([job])).superseded) == [job.id]
    else:
        await runner.crash()
        other.bury()
    assert ids(await other.take(suspects=9 if how == "crash" else 0)) == [later]


@pytest.mark.parametrize("transition", [Retry(60.0, "boom"), Wait(60.0)], ids=repr)
async def test_what_has_failed_does_not_hurry_others(
    engine: Engine, runner: Runner, transition: Transition
) -> None:
    """Rule 26: it has a time of its own to wait."""
    [job] = await twins(engine, runner)
    await engine.storage.enqueue([mail(1, deduplicated=True, delay=3600.0)])
    assert list((await runner.settle([job], transition)).superseded) == [job.id]
    engine.advance(1000)
    runner.maintain()
    assert await runner.take() == []


async def test_crashes_add_up_over_identical_jobs(engine: Engine, other: Runner) -> None:
    """Rule 20: each one is enqueued again while it runs, as by a clock, and kills its process."""
    [first] = await engine.storage.enqueue([mail(1, deduplicated=True)])
    again = first
    for crashes in range(3):
        runner = engine.runner()
        [job] = await runner.take(suspects=5 if crashes else 0)
        assert job.crashes == crashes
        [again] = await engine.storage.enqueue([mail(1, deduplicated=True)])
        assert again is not None
        await runner.crash()
        other.bury()
    [job] = await other.take(suspects=5)
    assert (job.id, job.crashes) == (again, 3)
    assert first != job.id


async def test_twins_that_come_back_together_keep_the_higher_count(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rules 20 and 26."""
    first, second = await twins(engine, runner, runner)
    engine.change(second.id, crashes=4)
    await runner.crash()
    other.bury()
    [job] = await other.take(suspects=9)
    assert (job.id, job.crashes) == (first.id, 5)


@pytest.mark.parametrize("transition", [*BACK, None], ids=repr)
async def test_a_suspect_that_makes_way_hands_its_count_on(
    engine: Engine, runner: Runner, transition: Transition | None
) -> None:
    """Rules 20 and 26: or deploys would clear a job that kills, as often as it is enqueued while it runs. (None: the session
    gives it back.) One that came to an end of its own has cleared itself."""
    [job] = await twins(engine, runner)
    engine.change(job.id, crashes=3)
    [waiting] = await engine.storage.enqueue([mail(1, deduplicated=True)])
    if transition is None:
        settled = runner.control.release(guards([job]))
    else:
        settled = await runner.settle([job], transition)
    assert list(settled.superseded) == [job.id]
    [taken] = await runner.take(suspects=9) or await runner.take()
    crashes = 3 if transition is None or not clears_crashes(transition) else 0
    assert (taken.id, taken.crashes) == (waiting, crashes)


async def test_twins_that_are_given_back_together_keep_the_higher_count(
    engine: Engine, runner: Runner
) -> None:
    """The same without a crash."""
    first, second = await twins(engine, runner, runner)
    engine.change(second.id, crashes=4)
    settled = await runner.settle([first, second], Release())
    assert list(settled.superseded) == [second.id]
    [job] = await runner.take(suspects=9)
    assert (job.id, job.crashes) == (first.id, 4)


async def test_close_and_release_with_twins(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rule 26: the control link's ways back resolve it too, and name the one that made way."""
    first, second = await twins(engine, runner, runner)
    await engine.storage.enqueue([mail(2)])
    [bystander] = await runner.take()
    released = runner.control.release(guards([second, bystander, first]))
    assert sorted(released.written) == [first.id, bystander.id]
    assert list(released.superseded) == [second.id]
    assert await alive(engine, first, second) == [first.id]
    assert ids(await runner.take()) == [bystander.id, first.id]
    [third] = await twins(engine, runner)
    closed = runner.control.close()
    assert sorted(closed.written) == [first.id, bystander.id]
    assert list(closed.superseded) == [third.id]
    assert (released.count, closed.count) == (3, 3)
    assert sorted(ids(await other.take())) == [first.id, bystander.id]


async def test_release_of_a_lost_claim_with_twins(engine: Engine, runner: Runner) -> None:
    """Rules 2 and 26: a claim whose reply was lost goes back onto an identical job, and that is named as superseded."""
    await engine.storage.enqueue([mail(1, deduplicated=True), mail(2)])
    twin, bystander = await runner.take(token=5000)
    [waiting] = await engine.storage.enqueue([mail(1, deduplicated=True)])
    released = await engine.storage.release_claim(runner.session, 5000)
    assert list(released.written) == [bystander.id]
    assert list(released.superseded) == [twin.id]
    assert sorted(ids(await runner.take())) == [bystander.id, waiting]


async def test_requeue_onto_a_waiting_job(engine: Engine, runner: Runner) -> None:
    """Rule 26: dead twins are requeued together; one waits, and what waits already goes first."""
    first, second = await twins(engine, runner, runner)
    await runner.settle([first, second], Bury("over"))
    assert await engine.storage.requeue([second.id, first.id]) == [first.id]
    assert await engine.storage.requeue([second.id]) == []
    [again] = await runner.take()
    await runner.settle([again], Bury("over"))
    [waiting] = await engine.storage.enqueue([mail(1, deduplicated=True)])
    assert await engine.storage.requeue([first.id]) == []
    assert ids(await runner.take()) == [waiting]
    assert await engine.storage.list_jobs(JobState.DEAD) == []


async def test_large_batch_of_twins(engine: Engine, runner: Runner) -> None:
    """Rule 26: 3 x 50 twins given back in one statement."""
    for _ in range(3):
        await engine.storage.enqueue(mails(50, deduplicated=True))
        assert len(await runner.take()) == 50
    held = [job_id for held in engine.claims_of(runner.session).values() for job_id in held]
    assert len(held) == 150
    assert runner.control.close().count == 150
    assert len(await engine.storage.list_jobs(JobState.AVAILABLE, limit=1000)) == 50
