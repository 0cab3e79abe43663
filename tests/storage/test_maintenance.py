"""Staging and homing: rows that become available by themselves, or by a runner that knows their type."""

from __future__ import annotations

from tests.storage.engines import Engine, Runner, ids, mail, mails
from workers.job import JobState
from workers.lifecycle import Release, Retry
from workers.storage.base import Wake

KNOWN = {"mail": "default", "report": "slow"}


async def test_scheduled_jobs_become_available(engine: Engine, runner: Runner) -> None:
    """Rule 8: not before their time, and then by the next maintenance."""
    [job_id] = await engine.storage.enqueue([mail(delay=60)])
    engine.advance(55)
    assert runner.maintain().wakes == []
    assert await runner.take() == []
    engine.advance(5)
    assert await runner.take() == []
    runner.maintain()
    assert ids(await runner.take()) == [job_id]


async def test_due_jobs_are_staged_in_the_order_of_their_times(
    engine: Engine, runner: Runner
) -> None:
    """Rule 8: whatever the order in which they were written."""
    delays = [50.0, 10.0, 30.0, 20.0, 40.0]
    enqueued = await engine.storage.enqueue([mail(1, delay=delay) for delay in delays])
    engine.advance(60)
    runner.maintain()
    by_time = [job_id for _, job_id in sorted(zip(delays, enqueued, strict=True))]
    assert ids(await runner.take()) == by_time


async def test_staged_jobs_get_fresh_positions(engine: Engine, runner: Runner) -> None:
    """Rule 8: they stand behind what waits already, where a scan that starts at its last end finds them."""
    [late] = await engine.storage.enqueue([mail(delay=60)])
    early = await engine.storage.enqueue(mails(3))
    assert ids(await runner.take(1, thorough=False)) == early[:1]
    engine.advance(60)
    [wake] = runner.maintain().wakes
    engine.storage.noticed(wake)
    assert ids(await runner.take(thorough=False)) == [*early[1:], late]


async def test_staging_keeps_counters_and_queue(engine: Engine, runner: Runner) -> None:
    """Guarantee 6: becoming due changes nothing but that."""
    await engine.storage.enqueue([mail(1, queue="slow", deduplicated=True)])
    await runner.settle(await runner.take(queue="slow"), Retry(60.0, "boom"))
    engine.advance(60)
    runner.maintain(KNOWN)
    [job] = await runner.take(queue="slow")
    assert (job.retries, job.crashes, job.deduplicated) == (1, 0, True)


async def test_running_jobs_are_not_staged(engine: Engine, runner: Runner) -> None:
    """Rule 8: only rows that wait have a time."""
    await engine.storage.enqueue(mails(1))
    [job] = await runner.take()
    engine.advance(600)
    runner.maintain()
    assert await runner.take() == []
    assert await runner.complete([job]) == {job.id}


async def test_wakes_name_the_lowest_position_of_each_priority(
    engine: Engine, runner: Runner
) -> None:
    """Rule 27: one wake-up for each queue and priority."""
    scheduled = [
        mail(1, delay=20),
        mail(2, delay=10),
        mail(3, delay=10, priority=7),
        mail(4, delay=10, queue="slow"),
        mail(5, delay=10, queue=None, job_type="unknown"),
    ]
    await engine.storage.enqueue(scheduled)
    engine.advance(30)
    wakes = {(wake.queue, wake.priority): wake.position for wake in runner.maintain(KNOWN).wakes}
    assert wakes.keys() == {("default", 0), ("default", 7), ("slow", 0)}
    assert all(position > len(scheduled) for position in wakes.values())
    assert runner.maintain(KNOWN).wakes == []


async def test_homeless_jobs_get_their_declared_queue(engine: Engine, runner: Runner) -> None:
    """Rule 6: by the next maintenance of a runner that knows the type; highest priority first, then in order."""
    homeless = [
        mail(1, queue=None),
        mail(2, queue=None, job_type="report"),
        mail(3, queue=None, priority=5),
        mail(4, queue=None),
    ]
    first, report, high, last = await engine.storage.enqueue(homeless)
    assert await runner.take() == []
    wakes = runner.maintain(KNOWN).wakes
    assert {(wake.queue, wake.priority) for wake in wakes} == {
        ("default", 0),
        ("default", 5),
        ("slow", 0),
    }
    assert ids(await runner.take()) == [high, first, last]
    assert ids(await runner.take(queue="slow", types=("report",))) == [report]


async def test_homed_jobs_get_fresh_positions(engine: Engine, runner: Runner) -> None:
    """Rule 8: a row that was in no queue until now lies behind the scan hints of its queue otherwise."""
    [homeless] = await engine.storage.enqueue([mail(queue=None)])
    others = await engine.storage.enqueue(mails(2))
    assert ids(await runner.take(1, thorough=False)) == others[:1]
    [wake] = runner.maintain().wakes
    engine.storage.noticed(wake)
    assert ids(await runner.take(thorough=False)) == [others[1], homeless]


async def test_homed_jobs_of_several_types_keep_their_order(engine: Engine, runner: Runner) -> None:
    """Rule 6: as if their queue had been in the rows from the beginning."""
    types = ("mail", "report", "mail", "report")
    enqueued = await engine.storage.enqueue([mail(queue=None, job_type=name) for name in types])
    runner.maintain({"mail": "default", "report": "default"})
    assert ids(await runner.take(types=("mail", "report"))) == enqueued


async def test_unknown_types_are_left_alone(engine: Engine, runner: Runner) -> None:
    """Guarantee 7: homeless jobs of types that nobody here knows stay as they are, due ones too."""
    jobs = [
        mail(1, queue=None, job_type="unknown"),
        mail(2, queue=None, job_type="unknown", delay=10),
    ]
    enqueued = await engine.storage.enqueue(jobs)
    engine.advance(20)
    assert runner.maintain(KNOWN).wakes == []
    for job_id in enqueued:
        record = await engine.storage.find(job_id or 0)
        assert record is not None
        assert (record.queue, record.state) == (None, JobState.AVAILABLE)
    runner.maintain({"unknown": "odd"})
    assert sorted(ids(await runner.take(queue="odd", types=("unknown",)))) == enqueued


async def test_scheduled_homeless_jobs_get_queue_and_time_at_once(
    engine: Engine, runner: Runner
) -> None:
    """Rules 6 and 8: a due row without a queue takes one round of maintenance, not two."""
    [job_id] = await engine.storage.enqueue([mail(queue=None, delay=10)])
    engine.advance(10)
    assert [wake.queue for wake in runner.maintain().wakes] == ["default"]
    assert ids(await runner.take()) == [job_id]


async def test_stray_jobs_are_named(engine: Engine, runner: Runner) -> None:
    """Rule 6: known types in queues that no runner works, after a while; unknown types and its own queues are no news."""
    await engine.storage.enqueue(
        [
            *mails(3, queue="elsewhere"),
            mail(queue="nowhere", job_type="report"),
            mail(queue="another's"),
            mail(queue="elsewhere", job_type="unknown"),
            *mails(3),
        ]
    )
    engine.runner(queues=("another's",))
    assert not runner.maintain(KNOWN, ["default", "slow"]).stray
    engine.advance(11)
    found = runner.maintain(KNOWN, ["default", "slow"]).stray
    assert set(found) == {("mail", "elsewhere"), ("report", "nowhere")}


async def test_a_queue_that_nobody_works_any_more_is_named(engine: Engine, runner: Runner) -> None:
    """Rule 6: a dead runner works nothing."""
    await engine.storage.enqueue([mail(queue="another's")])
    other = engine.runner(queues=("another's",))
    engine.advance(11)
    assert not runner.maintain(KNOWN).stray
    await other.crash()
    runner.bury()
    engine.advance(11)
    assert set(runner.maintain(KNOWN).stray) == {("mail", "another's")}


async def test_types_that_nobody_knows_are_named_after_a_while(
    engine: Engine, runner: Runner
) -> None:
    """Guarantee 5: in the queues that this runner works, that nobody works, or in none; not while another is at them."""
    await engine.storage.enqueue(
        [
            mail(job_type="unknown"),
            mail(job_type="unknown", queue="elsewhere"),
            mail(job_type="unknown", queue="nowhere"),
            mail(job_type="homeless", queue=None),
            mail(job_type="another's"),
            *mails(3),
        ]
    )
    assert not runner.maintain(KNOWN, ["default"]).unknown
    await engine.runner(queues=("elsewhere",)).take(types=("another's",))
    engine.advance(11)
    found = runner.maintain(KNOWN, ["default"]).unknown
    assert set(found) == {("unknown", "default"), ("unknown", "nowhere"), ("homeless", "")}


async def test_given_back_jobs_need_no_staging(engine: Engine, runner: Runner) -> None:
    """Rule 8: a released job is available at once and wakes nobody a second time."""
    await engine.storage.enqueue(mails(1))
    await runner.settle(await runner.take(), Release())
    assert runner.maintain().wakes == []
    assert len(await runner.take()) == 1


async def test_every_wake_has_its_queue(engine: Engine, runner: Runner) -> None:
    """The port's `Wake` is what listeners and maintenance both speak."""
    await engine.storage.enqueue([mail(delay=10)])
    engine.advance(10)
    [wake] = runner.maintain().wakes
    assert wake == Wake("default", 0, wake.position)
