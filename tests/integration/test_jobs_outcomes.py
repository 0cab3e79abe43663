"""What becomes of a job: gone when it is finished, kept and counted when it failed, never run twice at a time."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, eventually, make_runner, running
from workers import BackgroundJob, Exponential, FailedJobsError, Fixed, Linear, Priority, Runner

ROWS = "SELECT id, retries, last_error FROM background_jobs ORDER BY id"


class Note(BackgroundJob[World]):
    number: int = 0

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


class Fail(BackgroundJob[World]):
    max_attempts = 3
    backoff = 0

    async def run(self, ctx: World) -> None:
        ctx.note("ran")
        raise ValueError("out of Pokéballs")


class Wait(BackgroundJob[World]):
    """Says that it runs, and waits for leave."""

    name: str = ""

    async def run(self, ctx: World) -> None:
        ctx.note(self.name)
        ctx.signal(f"{self.name} runs")
        await ctx.wait(f"{self.name} may end")


class WaitDeduplicated(Wait):
    job_name = "wait_deduplicated"
    deduplicated = True


class InThread(BackgroundJob[World]):
    def run(self, ctx: World) -> None:
        ctx.note("in a thread")


class InThreadAndTransaction(InThread):
    job_name = "in_thread_and_transaction"
    transactional = True


@pytest.mark.parametrize("job_class", [InThread, InThreadAndTransaction])
async def test_a_job_that_gets_no_thread_has_not_begun(
    pool: AsyncPool,
    conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    job_class: type[InThread],
) -> None:
    """The system has no more: no attempt is counted, the job waits a little, and the runner forgets that it had a thread."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith("AnyIO"):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    job_class().enqueue(conn)
    world = World()
    async with running(pool, job_class, context=world) as handle:
        waiting = "SELECT retries, run_at > now() FROM background_jobs"
        await eventually(conn, waiting, [(0, True)])
        assert not handle._supervisor._reports.jobs_in_threads()
    assert "could not begin, and is tried again: can't start new thread" in caplog.text
    monkeypatch.undo()
    conn.execute("UPDATE background_jobs SET run_at = now()")
    await drain(pool, job_class, context=world)
    assert world.seen == ["in a thread"]


async def test_a_finished_job_is_gone(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Outcome `completed` deletes the row; nothing is kept of it."""
    Note(number=1).enqueue(conn)
    world = World()
    await drain(pool, Note, context=world)
    assert world.seen == [1]
    for table in (
        "background_jobs",
        "dead_jobs",
        "archived_jobs",
        "worker_claims",
        "worker_sessions",
    ):
        assert conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,), table


async def test_a_claimed_job_is_claimed_by_nobody_else(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Guarantee 2: while one runner runs a job, another one on the same queue finds nothing."""
    Wait(name="it").enqueue(conn)
    world, other = World(), World()
    async with running(pool, Wait, context=world):
        await world.wait("it runs")
        await drain(pool, Wait, context=other)
        assert other.seen == []
        world.signal("it may end")
    assert world.seen == ["it"]
    assert conn.execute(ROWS).fetchall() == []


async def test_a_failing_job_is_kept_and_counted_before_anyone_else_can_have_it(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Guarantee 6: the row never is available with the old count; the claim and the count change in one statement."""
    conn.execute(
        """
        CREATE TABLE witness (available boolean, retries integer, waits boolean);
        CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO witness VALUES (NEW.session_id IS NULL, NEW.retries, NEW.run_at > now());
            RETURN NEW;
        END $$;
        CREATE TRIGGER witness AFTER UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION witness();
        """
    )

    class FailOnce(BackgroundJob[World]):
        backoff = Fixed(1000)

        async def run(self, ctx: World) -> None:
            ctx.note("ran")
            raise ValueError("out of Pokéballs")

    job_id = FailOnce().enqueue(conn)
    world = World()
    await drain(pool, FailOnce, context=world)
    assert world.seen == ["ran"]
    assert conn.execute("SELECT * FROM witness").fetchall() == [(False, 0, None), (True, 1, True)]
    ((found, retries, error),) = conn.execute(ROWS).fetchall()
    assert (found, retries) == (job_id, 1)
    assert error.startswith("Traceback (most recent call last):\n")
    assert error.endswith("ValueError: out of Pokéballs\n")
    assert "runtime" not in error, "the library's own frames are left out"


async def test_a_job_is_dead_after_its_last_attempt(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """`max_attempts` runs, each counted, then a dead letter with the reason and the last error."""
    job_id = Fail().enqueue(conn)
    world = World()
    async with running(pool, Fail, context=world):
        await eventually(conn, "SELECT count(*) FROM dead_jobs", [(1,)])
    assert world.seen == ["ran"] * 3
    ((found, retries, reason, error),) = conn.execute(
        "SELECT id, retries, reason, last_error FROM dead_jobs"
    ).fetchall()
    assert (found, retries, reason) == (job_id, 3, "failed 3 of 3 attempts")
    assert error.endswith("ValueError: out of Pokéballs\n")
    assert conn.execute(ROWS).fetchall() == []


async def test_identical_jobs_collapse_while_one_waits_but_not_while_one_runs(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Rule 25: the claim frees the key."""
    job = WaitDeduplicated(name="twin")
    first = job.enqueue(conn)
    assert first is not None
    assert job.enqueue(conn) is None
    world = World()
    async with running(pool, WaitDeduplicated, context=world, workers=1):
        await world.wait("twin runs")
        second = job.enqueue(conn)
        assert second is not None
        assert second != first
        assert job.enqueue(conn) is None
        world.signal("twin may end")
        await eventually(conn, ROWS, [])
    assert world.seen == ["twin", "twin"]


async def test_a_batch_keeps_its_order_and_names_duplicates(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """enqueue_batch: ids in order, None for duplicates, inside the batch as well; an empty batch is fine."""
    names = ["a", "b", "a", "c", "b"]
    ids = WaitDeduplicated.enqueue_batch(conn, [WaitDeduplicated(name=name) for name in names])
    assert [job_id is None for job_id in ids] == [False, False, True, False, True]
    assert WaitDeduplicated.enqueue_batch(conn, []) == []
    assert Note.enqueue_batch(conn, []) == []
    world = World()
    for name in names:
        world.signal(f"{name} may end")
    numbers = list(range(100))
    ids = Note.enqueue_batch(conn, [Note(number=number) for number in numbers])
    assert ids == sorted(filter(None, ids))
    await drain(pool, WaitDeduplicated, Note, context=world, workers=1)
    assert world.seen == ["a", "b", "c", *numbers], "one worker runs them in the order of the batch"


async def test_higher_priorities_run_first(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """By priority, names and plain integers alike, then in the order of enqueueing."""
    given = [0, Priority.LOW, Priority.CRITICAL, 7, Priority.HIGH, Priority.NORMAL, 32767, -32768]
    for index, priority in enumerate(given):
        Note(number=index).enqueue(conn, priority=priority)
    world = World()
    await drain(pool, Note, context=world, workers=1)
    order = [given[index] for index in world.seen]
    assert order == sorted(given, reverse=True)
    assert world.seen.index(0) < world.seen.index(5)


#: A strategy, the failures before this one, and the seconds that it asks for, least and most.
BACKOFFS: list[tuple[Any, int, float, float]] = [
    (Fixed(100), 0, 100, 100),
    (timedelta(minutes=2), 5, 120, 120),
    (Linear(step=10, cap=25), 1, 20, 20),
    (Linear(step=10, cap=25), 7, 25, 25),
    (Exponential(base=10, jitter=0), 3, 80, 80),
    (Exponential(base=10, factor=3, jitter=0, cap=50), 3, 50, 50),
    (Exponential(), 0, 54, 66),
    (Exponential(), 32, 77760, 95040),
    (Exponential(), 2**31 - 3, 77760, 95040),
    (staticmethod(lambda attempt: attempt * 7), 2, 21, 21),
]


async def test_a_backoff_gives_run_at(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Each strategy's seconds, by the database's clock, also when an interval of 2^retries would overflow (rule 21)."""
    kinds: list[type[BackgroundJob[Any]]] = []
    for number, (strategy, retries, _, _) in enumerate(BACKOFFS):

        class Retried(BackgroundJob[Any]):
            job_name = f"retried_{number}"
            max_attempts = 2**31 - 1
            backoff = strategy

            async def run(self, ctx: Any) -> None:
                raise ValueError

        kinds.append(Retried)
        job_id = Retried().enqueue(conn)
        conn.execute("UPDATE background_jobs SET retries = %s WHERE id = %s", [retries, job_id])
    await drain(pool, *kinds)
    rows = conn.execute(
        "SELECT extract(epoch FROM run_at - last_retry)::float8, retries FROM background_jobs ORDER BY id"
    ).fetchall()
    for (waits, counted), (strategy, retries, least, most) in zip(rows, BACKOFFS, strict=True):
        assert least <= waits <= most + 0.5, strategy
        assert counted == retries + 1


async def test_check_for_failed_jobs(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """It is quiet until a job has failed, then names the ids, dead ones included."""
    runner: Runner[World] = make_runner(pool, Fail, Note, context=World())
    Note().enqueue(conn)
    await runner.check_for_failed_jobs()
    failing = Fail().enqueue(conn)
    await drain(pool, Fail, Note, context=World())
    with pytest.raises(FailedJobsError, match="1 job failed") as caught:
        await runner.check_for_failed_jobs()
    assert (caught.value.count, caught.value.job_ids) == (1, (failing,))
    assert str(caught.value).endswith(f"\n  {failing} fail: ValueError: out of Pokéballs")
    Fail.enqueue_batch(conn, [Fail()] * 5)
    await drain(pool, Fail, Note, context=World())
    with pytest.raises(FailedJobsError, match="6 jobs failed") as caught:
        await runner.check_for_failed_jobs()
    assert len(caught.value.job_ids) == 6
    assert [job.job_type for job in caught.value.jobs] == ["fail"] * 3
