"""Sessions: who is alive, who is dead, and what becomes of a dead one's jobs."""

from __future__ import annotations

import anyio
import pytest
from anyio import to_thread

from tests.storage.engines import LEASE, NEVER, Engine, Runner, guards, ids, mail, mails
from workers.errors import StorageUnavailableError
from workers.job import JobState
from workers.lifecycle import Release, Retry, Wait


async def test_ids_are_never_used_twice(engine: Engine) -> None:
    """A session's id is its own for ever."""
    first = engine.runner()
    first.control.close()
    assert engine.runner().session > first.session


async def test_crashed_session(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rules 19 and 20, guarantee 6: the jobs of a killed runner come back with one crash more, and no attempt."""
    await engine.storage.enqueue(mails(3))
    taken = await runner.take(2)
    await runner.crash()
    [dead] = other.bury()
    assert (dead.session, dead.name, dead.jobs) == (runner.session, "runner", 2)
    assert dead.reason
    assert len(await other.take()) == 1
    again = await other.take(suspects=5)
    assert ids(again) == ids(taken)
    assert [(job.retries, job.crashes) for job in again] == [(0, 1)] * 2
    assert await runner.complete(taken) == set()


async def test_a_free_lock_is_not_a_death(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rule 19: it takes two sweeps, about a second apart."""
    await engine.storage.enqueue(mails(1))
    await runner.take()
    await runner.crash()
    for _ in range(3):
        found = other.maintain()
        assert (found.silent, found.rescue) == (True, False)
        assert other.control.rescue() == []
    engine.advance(0.5)
    assert not other.maintain().rescue
    engine.advance(0.25)
    assert other.maintain().rescue
    assert [dead.session for dead in other.control.rescue()] == [runner.session]


async def test_a_held_lock_is_never_suspected(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Guarantee 4: a healthy runner is left alone, however often it is looked at."""
    await engine.storage.enqueue(mails(1))
    jobs = await runner.take()
    for _ in range(5):
        found = other.maintain()
        assert (found.silent, found.rescue) == (False, False)
        engine.advance(1)
    assert runner.maintain().alive
    assert await runner.complete(jobs) == set(ids(jobs))


async def test_retaking_the_lock(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rule 19: a runner whose link broke takes the same session again and keeps its claims; suspicion starts anew."""
    await engine.storage.enqueue(mails(1))
    jobs = await runner.take()
    for _ in range(3):
        await runner.crash()
        with pytest.raises(StorageUnavailableError):
            runner.maintain()
        other.maintain()
        engine.advance(0.7)
        assert runner.control.recover(LEASE)
        engine.advance(0.7)
        assert not other.maintain().rescue
    assert runner.maintain().alive
    assert await runner.complete(jobs) == set(ids(jobs))


async def test_suspicion_ends_with_the_lock_alone(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 19: two sweeps in a row; one that finds the lock held in between clears the first."""
    await runner.crash()
    other.maintain()
    assert runner.control.recover(LEASE)
    other.maintain()
    engine.advance(2)
    await runner.crash()
    assert not other.maintain().rescue
    engine.advance(1)
    assert other.maintain().rescue


async def test_recovering_too_late(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rule 19: a reaped session does not come back, before or after its row is gone."""
    await engine.storage.enqueue(mails(1))
    await runner.take()
    await runner.crash()
    other.maintain()
    engine.advance(1)
    other.maintain()
    assert not runner.control.recover(LEASE)
    assert not runner.maintain().alive
    other.control.rescue()
    assert not runner.control.recover(LEASE)
    assert not runner.maintain().alive
    assert await runner.take(suspects=5) == []


async def test_lease_expiry(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rules 18 and 19: a runner that holds its lock but stands still is dead when its lease has run out."""
    await engine.storage.enqueue(mails(1))
    jobs = await runner.take()
    for _ in range(3):
        engine.advance(LEASE / 3 - 0.5)
        assert not other.maintain().rescue
    engine.advance(2)
    assert other.maintain().rescue
    [dead] = other.control.rescue()
    assert (dead.session, dead.jobs) == (runner.session, 1)
    assert not runner.maintain().alive
    assert await runner.complete(jobs) == set()


async def test_the_lease_is_renewed(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rule 18: every round of housekeeping keeps the lease; one that is told not to does not."""
    for _ in range(6):
        engine.advance(LEASE / 3)
        runner.maintain()
        assert not other.maintain().rescue
    for _ in range(3):
        engine.advance(LEASE / 3 - 0.5)
        runner.maintain(renew=False)
        assert not other.maintain().rescue
    engine.advance(2)
    assert other.maintain().rescue


async def test_whoever_was_late_itself_does_not_judge(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Guarantee 4: when everything stood still, the first to move must not take the others for dead."""
    await engine.storage.enqueue(mails(1))
    jobs = await runner.take()
    engine.advance(10 * LEASE)
    assert not other.maintain().rescue
    assert runner.maintain().alive
    assert not other.maintain().rescue
    assert await runner.complete(jobs) == set(ids(jobs))


async def test_a_wait_ends_when_it_is_poked(engine: Engine, runner: Runner) -> None:
    """Rule 17: the control thread sleeps between its rounds; a poke from another thread ends that, now or next time."""
    runner.control.poke()
    runner.control.poke()
    await to_thread.run_sync(runner.control.wait, NEVER)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, runner.control.wait, NEVER)
        runner.control.poke()
    runner.control.wait(0)
    assert runner.maintain().alive


async def test_only_dead_sessions_are_rescued(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 20: the jobs of the living stay where they are."""
    await engine.storage.enqueue(mails(6))
    third = engine.runner("third")
    kept = [*await other.take(2), *await third.take(2)]
    lost = await runner.take(2)
    await runner.crash()
    third.maintain()
    [dead] = other.bury()
    assert dead.session == runner.session
    assert await other.complete(kept[:2]) == set(ids(kept[:2]))
    assert await third.complete(kept[2:]) == set(ids(kept[2:]))
    assert ids(await other.take(suspects=5)) == ids(lost)


async def test_several_dead_sessions(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rule 20: each is reported with the number of its jobs; the sessions that had none are not."""
    await engine.storage.enqueue(
        [*mails(3), mail(9, deduplicated=True), mail(10, deduplicated=True)]
    )
    third, idle = engine.runner("third"), engine.runner("idle")
    await runner.take(1)
    await third.take()
    for gone in (runner, third, idle):
        await gone.crash()
    dead = {found.session: found.jobs for found in other.bury()}
    assert dead == {runner.session: 1, third.session: 4}
    assert engine.sessions() == {other.session}


async def test_rescued_jobs_stand_behind_the_others_in_order(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rules 5 and 8: they are available again, so their positions are new, in the order of their ids."""
    enqueued = await engine.storage.enqueue(mails(5))
    for index, job_id in enumerate(enqueued):
        engine.change(job_id or 0, position=1_000_000 - index)
    assert ids(await other.take()) == enqueued[::-1]
    await other.crash()
    runner.bury()
    assert ids(await runner.take(suspects=1)) == enqueued


@pytest.mark.parametrize("deduplicated", [False, True])
async def test_what_others_hold_by_now_is_not_rescued(
    engine: Engine, runner: Runner, other: Runner, deduplicated: bool
) -> None:
    """Guarantee 2: a claim's row may still name a job that went back and was claimed again."""
    await engine.storage.enqueue(mails(1, deduplicated=deduplicated))
    await other.settle(await other.take(), Release())  # the claim is not closed
    jobs = await runner.take()
    await other.crash()
    assert runner.bury() == []
    assert await runner.complete(jobs) == set(ids(jobs))


async def test_the_lease_is_renewed_when_a_third_of_it_is_gone(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 18: whoever is late by less than the rest is not taken for dead."""
    engine.advance(0.4 * LEASE)
    runner.maintain()
    for part in (0.55, 0.25):
        engine.advance(part * LEASE)
        assert not other.maintain().rescue
    assert runner.maintain().alive


async def test_crashes_are_capped(engine: Engine, runner: Runner, other: Runner) -> None:
    """Rule 21: the crash counter ends at its type's largest value."""
    for deduplicated in (False, True):
        [job_id] = await engine.storage.enqueue([mail(deduplicated=deduplicated)])
        engine.change(job_id or 0, crashes=32766)
    for _ in range(2):
        victim = engine.runner("victim")
        assert len(await victim.take(suspects=32767)) == 2
        await victim.crash()
        [dead] = other.bury()
        assert dead.jobs == 2
    assert [job.crashes for job in await other.take(suspects=32767)] == [32767] * 2


@pytest.mark.parametrize("deduplicated", [False, True])
async def test_an_end_of_its_own_clears_a_job(
    engine: Engine, runner: Runner, deduplicated: bool
) -> None:
    """Rule 20: one that fails or snoozes has not killed its process; an interruption says nothing, nor does a job
    whose code could not begin."""
    ends = ((Release(), 3), (Retry(0.0, "no"), 0), (Wait(0.0), 0), (Wait(0.0, begun=False), 3))
    for transition, crashes in ends:
        [job_id] = await engine.storage.enqueue([mail(deduplicated=deduplicated)])
        engine.change(job_id or 0, crashes=3)
        await runner.settle(await runner.take(suspects=32767), transition)
        record = await engine.storage.find(job_id or 0)
        assert record is not None
        assert record.crashes == crashes, transition
        await runner.complete(await runner.take(suspects=32767) or await runner.take())


async def test_rescued_jobs_keep_what_they_are(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Guarantee 6: a crash changes the crash counter and nothing else that belongs to the job."""
    enqueued = await engine.storage.enqueue(
        [mail(1, priority=3), mail(2, priority=3, deduplicated=True)]
    )
    before = [await engine.storage.find(job_id or 0) for job_id in enqueued]
    await runner.take()
    await runner.crash()
    other.bury()
    after = [await engine.storage.find(job_id or 0) for job_id in enqueued]
    for old, new in zip(before, after, strict=True):
        assert old is not None
        assert new is not None
        assert new.state is JobState.AVAILABLE
        assert (new.data, new.queue, new.priority, new.retries) == (
            old.data,
            old.queue,
            old.priority,
            0,
        )
        assert new.last_retry - new.created_at == old.last_retry - old.created_at
        assert new.crashes == 1


async def test_maintenance_names_the_queues_of_suspects(engine: Engine, runner: Runner) -> None:
    """Rule 20: a runner learns in which of its queues suspects of its types wait."""
    enqueued = await engine.storage.enqueue(
        [
            mail(1),
            mail(2, queue="reports"),
            mail(3, queue="elsewhere"),
            mail(4, queue="more", job_type="unknown"),
        ]
    )
    declared, queues = {"mail": "default"}, ["default", "reports", "more"]
    assert set(runner.maintain(declared, queues).suspects) == set()
    for job_id in enqueued:
        engine.change(job_id or 0, crashes=1)
    assert set(runner.maintain(declared, queues).suspects) == {"default", "reports"}
    await runner.take(suspects=5)
    assert set(runner.maintain(declared, queues).suspects) == {"reports"}


async def test_a_session_stays_while_it_has_claims(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 4: a sweep removes a dead session once nothing of it is left."""
    await engine.storage.enqueue(mails(1))
    await runner.take()
    await runner.crash()
    other.maintain()
    engine.advance(1)
    other.maintain()
    assert engine.sessions() == {runner.session, other.session}
    other.control.rescue()
    assert engine.sessions() == {other.session}
    assert not other.maintain().rescue


async def test_close_gives_everything_back(engine: Engine, runner: Runner, other: Runner) -> None:
    """Guarantee 6: what a runner still holds when it ends goes back uncounted, and the session leaves no trace."""
    await engine.storage.enqueue([*mails(3), *mails(2, deduplicated=True)])
    done, *held = await runner.take()
    await runner.complete([done])
    assert runner.control.close().count == 4
    assert engine.sessions() == {other.session}
    assert engine.claims_of(runner.session) == {}
    again = await other.take()
    assert sorted(ids(again)) == sorted(ids(held))
    assert all(job.retries == job.crashes == 0 for job in again)


async def test_close_of_a_session_that_was_reaped(
    engine: Engine, runner: Runner, other: Runner
) -> None:
    """Rule 19: closing what is gone already is harmless."""
    await runner.crash()
    other.bury()
    assert runner.control.close().count == 0
    assert engine.sessions() == {other.session}


async def test_close_after_the_link_broke(engine: Engine, runner: Runner, other: Runner) -> None:
    """A runner that ends without a link connects once more to give its jobs back."""
    await engine.storage.enqueue(mails(2))
    await runner.take()
    await runner.crash()
    assert runner.control.close().count == 2
    assert len(await other.take()) == 2


async def test_release_by_the_control_link(engine: Engine, runner: Runner) -> None:
    """Rule 2: single jobs go back uncounted; guards that are stale are ignored."""
    await engine.storage.enqueue([*mails(2), *mails(2, deduplicated=True)])
    jobs = await runner.take()
    released = [jobs[0], jobs[2]]
    assert runner.control.release(guards(released)).count == 2
    assert runner.control.release(guards(released)).count == 0
    assert sorted(ids(await runner.take())) == sorted(ids(released))
    await runner.settle([jobs[1]], Release())
    assert await runner.complete([jobs[3]]) == {jobs[3].id}
