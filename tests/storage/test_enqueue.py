"""Producing: one job, batches, times, and refusals that write nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.storage.engines import Engine, PostgresEngine, Runner, ids, mail, mails
from workers import BackgroundJob
from workers.errors import StorageRejectedError
from workers.job import JobState, NewJob
from workers.lifecycle import Retry

SOON, PAST = timedelta(hours=1), timedelta(hours=-1)


async def states(engine: Engine, job_ids: list[int | None]) -> list[JobState | None]:
    records = [await engine.storage.find(job_id or 0) for job_id in job_ids]
    return [None if record is None else record.state for record in records]


async def test_ids_come_in_order(engine: Engine, runner: Runner) -> None:
    """The ids of a batch are in its order, and so are the jobs when they are claimed."""
    enqueued = await engine.storage.enqueue(mails(20))
    assert enqueued == sorted(enqueued, key=lambda job_id: job_id or 0)
    jobs = await runner.take()
    assert ids(jobs) == enqueued
    assert len({job.data for job in jobs}) == 20


async def test_mixed_batch(engine: Engine) -> None:
    """A batch may hold jobs of all kinds; each id stands where its job stood."""
    batch = [
        mail(1, priority=4),
        mail(2, job_type="report", queue="slow"),
        mail(3, deduplicated=True),
        mail(4, delay=60),
        mail(3, deduplicated=True),
        mail(5, queue=None),
        mail(6, run_at=datetime(2100, 1, 1, tzinfo=UTC)),
        mail(7, priority=4),
    ]
    enqueued = await engine.storage.enqueue(batch)
    assert enqueued[4] is None
    for job, job_id in zip(batch, enqueued, strict=True):
        if job_id is not None:
            record = await engine.storage.find(job_id)
            assert record is not None
            assert (record.job_type, record.queue, record.priority) == (
                job.job_type,
                job.queue,
                job.priority,
            )
            assert record.data.replace(" ", "") == job.data.replace(" ", "")


async def test_mixed_batch_keeps_its_order(engine: Engine, runner: Runner) -> None:
    """Kinds that alternate are claimed as they alternate; of twins the first one stays, whatever its kind."""
    batch = [mail(1), mail(2, deduplicated=True), mail(3), mail(4, job_type="report"), mail(5)]
    enqueued = await engine.storage.enqueue(batch)
    assert ids(await runner.take(types=("mail", "report"))) == enqueued
    twins = [mail(6), mail(7, deduplicated=True, queue="other"), mail(7, deduplicated=True)]
    again = [mail(8, deduplicated=True), *twins, mail(8, deduplicated=True, queue="other")]
    kept = await engine.storage.enqueue(again)
    assert [job_id is None for job_id in kept] == [False, False, False, True, True]


async def test_delay(engine: Engine, runner: Runner) -> None:
    """`delay` is counted by the store's clock; none, or one that is over, means at once."""
    enqueued = await engine.storage.enqueue(
        [
            mail(1, delay=60.0),
            mail(2, delay=0.0),
            mail(3, delay=-5.0),
            mail(4, delay=1e300),
            mail(5),
        ]
    )
    assert await states(engine, enqueued) == [
        JobState.SCHEDULED,
        JobState.AVAILABLE,
        JobState.AVAILABLE,
        JobState.SCHEDULED,
        JobState.AVAILABLE,
    ]
    record = await engine.storage.find(enqueued[0] or 0)
    assert record is not None
    assert record.run_at is not None
    assert abs(record.run_at - record.created_at - timedelta(seconds=60)) < timedelta(seconds=1)


async def test_run_at(engine: Engine, runner: Runner) -> None:
    """`run_at` in the past means at once; in the future the moment itself, in any time zone."""
    [now_id] = await engine.storage.enqueue([mail()])
    now = await engine.storage.find(now_id or 0)
    assert now is not None
    late = (now.created_at + SOON).astimezone()
    enqueued = await engine.storage.enqueue(
        [mail(1, run_at=late), mail(2, run_at=now.created_at + PAST)]
    )
    assert await states(engine, enqueued) == [JobState.SCHEDULED, JobState.AVAILABLE]
    record = await engine.storage.find(enqueued[0] or 0)
    assert record is not None
    assert record.run_at == late


@pytest.mark.parametrize(
    "bad",
    [
        mail(data="{"),
        mail(data='{"x": NaN}'),
        mail(data='{"x": "\ud800"}'),
        mail(priority=32768),
        mail(priority=-32769),
        mail(job_type=""),
        mail(job_type="x" * 401),
        mail(queue=""),
        mail(queue="ä" * 201),
        mail(data="{", deduplicated=True),
    ],
    ids=str,
)
async def test_all_or_nothing(engine: Engine, bad: NewJob) -> None:
    """Guarantee 8: a batch with one bad job is refused whole, with an error that says it is no use to try again."""
    with pytest.raises(StorageRejectedError):
        await engine.storage.enqueue([mail(1), mail(2, deduplicated=True), bad, mail(3)])
    assert await engine.storage.stats() == []


async def test_identical_jobs_collapse_while_one_waits(engine: Engine, runner: Runner) -> None:
    """Rules 24 and 25: of identical deduplicated jobs one waits; a running one is in nobody's way."""
    [first] = await engine.storage.enqueue([mail(deduplicated=True)])
    assert await engine.storage.enqueue([mail(deduplicated=True)] * 2) == [None, None]
    [running] = await runner.take()
    assert running.id == first
    assert running.deduplicated
    [second, third] = await engine.storage.enqueue([mail(deduplicated=True)] * 2)
    assert (second is not None, third) == (True, None)
    assert await runner.complete([running]) == {first}
    assert ids(await runner.take()) == [second]


async def test_what_makes_jobs_identical(engine: Engine) -> None:
    """Rule 25: type, payload and priority, as in the original; not queue, time, or the order of keys."""
    same = [
        mail(data='{"a": 1, "bb": [1, 2.5, "ü", null]}', deduplicated=True),
        mail(data='{"bb":[1,2.5,"\\u00fc",null],"a":1}', deduplicated=True, queue="other"),
        mail(data='{"a": 1, "bb": [1, 2.5, "ü", null]}', deduplicated=True, delay=60.0),
    ]
    different = [
        mail(data='{"a": 1}', deduplicated=True),
        mail(data='{"a": 1}', deduplicated=True, priority=1),
        mail(data='{"a": 1}', deduplicated=True, job_type="report"),
        mail(data='{"a": "1"}', deduplicated=True),
        mail(data='{"a": [1]}', deduplicated=True),
    ]
    first, *others = await engine.storage.enqueue(same)
    assert first is not None
    assert others == [None, None]
    assert None not in await engine.storage.enqueue(different)


async def test_ordinary_jobs_never_collapse(engine: Engine) -> None:
    """Rule 25: only jobs that are both deduplicated meet."""
    assert None not in await engine.storage.enqueue(
        [mail(), mail(), mail(deduplicated=True), mail()]
    )


async def test_scheduled_and_retryable_rows_count_as_waiting(
    engine: Engine, runner: Runner
) -> None:
    """Rule 25: a row that waits for a time is in the way of an identical one."""
    await engine.storage.enqueue(
        [mail(1, deduplicated=True, delay=60.0), mail(2, deduplicated=True)]
    )
    await runner.settle(await runner.take(), Retry(60.0, "boom"))
    assert await engine.storage.enqueue(
        [mail(1, deduplicated=True), mail(2, deduplicated=True)]
    ) == [None, None]


async def test_batch_keeps_its_order_and_reports_duplicates(engine: Engine) -> None:
    """None stands where a duplicate was, within the batch and of what waits."""
    [waiting] = await engine.storage.enqueue([mail(5, deduplicated=True)])
    numbers = [9, 5, 1, 9, 3, 1, 5, 7]
    enqueued = await engine.storage.enqueue([mail(number, deduplicated=True) for number in numbers])
    kept = [number for number, job_id in zip(numbers, enqueued, strict=True) if job_id is not None]
    assert kept == [9, 1, 3, 7]
    fresh = [job_id for job_id in enqueued if job_id is not None]
    assert fresh == sorted(fresh)
    assert waiting not in fresh
    for number, job_id in zip(numbers, enqueued, strict=True):
        record = await engine.storage.find(job_id or 0)
        assert record is None or record.data == f'{{"number": {number}}}'


class Letter(BackgroundJob[None]):
    number: int

    async def run(self, ctx: None) -> None:
        raise NotImplementedError


async def test_jobs_enqueue_on_a_storage(engine: Engine, runner: Runner) -> None:
    """A storage is a connection like any other, which is what users' own tests run on."""
    first = await Letter(number=1).enqueue(engine.storage)
    second, third = await Letter.enqueue_batch(engine.storage, [Letter(number=2), Letter(number=3)])
    assert ids(await runner.take(types=("letter",))) == [first, second, third]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'no such name!', '{}'", "job_type must be"),
        ("NULL, '{}'", "job_type must be"),
        ("'mail', '[]'", "data must be a JSON object"),
        ("'mail', NULL", "data must be a JSON object"),
        ("'mail', jsonb_build_object('x', repeat('x', 1048576))", "over 1 MiB"),
        ("'mail', '{}', 'no such queue!'", "queue must be"),
        ("'mail', '{}', priority => 32768", "priority must be"),
        ("'mail', '{}', run_at => now(), delay => '1 minute'", "not both"),
        ("'mail', '{}', delay => '-1 s'", "delay must not be negative"),
        ("'mail', '{}', delay => '-1 s', deduplicated => true", "delay must not be negative"),
    ],
)
async def test_the_function_for_other_languages_checks_what_it_is_given(
    postgres: PostgresEngine, arguments: str, message: str
) -> None:
    """Guarantee 8: before anything is written."""
    with pytest.raises(psycopg.errors.CheckViolation, match=message):
        postgres.conn.execute(f"SELECT workers_enqueue({arguments})".encode())
    assert await postgres.storage.stats() == []
