"""`transactional` jobs: what they write and that they are done commit together. Guarantee 3, rule 16."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, eventually, listening_to, running
from workers import BackgroundJob, Cancel, Snooze, current_job
from workers.telemetry import JobFinished

EFFECTS = "SELECT job FROM effects ORDER BY 1"
ROWS = "SELECT retries, session_id IS NULL, last_error FROM background_jobs"
INSERT = b"INSERT INTO effects VALUES (%s)"
WRONG = b"SELECT 1/0"


class Effect(BackgroundJob[World]):
    """Writes one row, then does what its test asks for."""

    transactional = True
    backoff = 1000
    timeout = 30
    then: str = "return"

    async def run(self, ctx: World) -> None:
        job = current_job()
        conn: psycopg.AsyncConnection[Any] = job.connection
        await conn.execute(INSERT, [job.id])
        ctx.note(conn.info.backend_pid)
        match self.then:
            case "raise":
                raise ValueError("after the effect")
            case "exit":
                raise SystemExit
            case "cancel":
                raise Cancel("not wanted")
            case "snooze":
                raise Snooze(1000)
            case "sql error":
                await conn.execute(WRONG)
            case "swallowed sql error":
                with contextlib.suppress(psycopg.Error):
                    await conn.execute(WRONG)
            case "nested":
                with contextlib.suppress(psycopg.Error):
                    async with conn.transaction():
                        await conn.execute(WRONG)
            case "commit":
                await conn.commit()
            case "rollback":
                await conn.rollback()
            case "sql commit":
                await conn.execute(b"COMMIT")
            case "close":
                await conn.close()
            case "cancel itself":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            case "wait":
                ctx.signal("written")
                await ctx.wait("may end")


class EffectInThread(BackgroundJob[World]):
    transactional = True
    backoff = 1000
    timeout = 30
    then: str = "return"

    def run(self, ctx: World) -> Any:
        job = current_job()
        conn: psycopg.Connection[Any] = job.connection
        conn.execute(INSERT, [job.id])
        ctx.note(conn.info.backend_pid)
        match self.then:
            case "raise":
                raise ValueError("after the effect")
            case "exit":
                raise SystemExit
            case "cancel":
                raise Cancel("not wanted")
            case "snooze":
                raise Snooze(1000)
            case "sql error":
                conn.execute(WRONG)
            case "swallowed sql error":
                with contextlib.suppress(psycopg.Error):
                    conn.execute(WRONG)
            case "nested":
                with contextlib.suppress(psycopg.Error), conn.transaction():
                    conn.execute(WRONG)
            case "commit":
                conn.commit()
            case "rollback":
                conn.rollback()
            case "sql commit":
                conn.execute(b"COMMIT")
            case "close":
                conn.close()
            case "wait":
                ctx.signal("written")
                ctx.wait_in_thread("may end")


KINDS: list[type[Effect] | type[EffectInThread]] = [Effect, EffectInThread]
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def effects(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE effects (job bigint)")


@both
@pytest.mark.parametrize("then", ["return", "nested", "cancel itself"])
async def test_effect_and_completion_commit_together(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Effect], then: str
) -> None:
    """Nobody sees the effect without the completion, or the other way round: both have the same xmin."""
    conn.execute(
        """
        CREATE TABLE gone (job bigint);
        CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO gone VALUES (OLD.id); RETURN OLD; END $$;
        CREATE TRIGGER gone AFTER DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION gone();
        """
    )
    job_id = kind(then=then).enqueue(conn)
    await drain(pool, kind, context=World())
    query = (
        "SELECT job, effects.xmin::text = gone.xmin::text FROM effects FULL JOIN gone USING (job)"
    )
    assert conn.execute(query).fetchall() == [(job_id, True)]
    assert conn.execute(ROWS).fetchall() == []
    assert conn.execute("SELECT count(*) FROM worker_claims").fetchone() == (0,)


@both
async def test_neither_is_visible_before_it_ends(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Effect]
) -> None:
    """While it runs the row is claimed, and nobody else sees what it wrote."""
    job_id = kind(then="wait").enqueue(conn)
    world = World()
    async with running(pool, kind, context=world):
        await world.wait("written")
        assert conn.execute(EFFECTS).fetchall() == []
        assert conn.execute(ROWS).fetchall() == [(0, False, None)]
        world.signal("may end")
        await eventually(conn, EFFECTS, [(job_id,)])
        assert conn.execute(ROWS).fetchall() == []


#: What a job may do wrong after its effect, and words of the text that explains it.
WRONGS = {
    "raise": "ValueError: after the effect",
    "exit": "SystemExit",
    "sql error": "DivisionByZero",
    "swallowed sql error": "a statement failed and the exception was swallowed",
    "commit": "transaction",
    "rollback": "transaction",
    "sql commit": "the job ended its own transaction",
    "close": "the job ended its own transaction",
}


@both
async def test_a_failure_takes_the_effect_back(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Effect]
) -> None:
    """All of it is rolled back, and the retry counted, under the same token, with a text that explains."""
    ids: dict[str, int | None] = {}
    good = []
    for then in WRONGS:
        ids[then] = kind(then=then).enqueue(conn)
        good.append(kind().enqueue(conn))
    await drain(pool, kind, context=World(), workers=1)
    rows = conn.execute(
        "SELECT data->>'then', retries, session_id, last_error FROM background_jobs"
    )
    failed = {then: (retries, session, error) for then, retries, session, error in rows}
    assert failed.keys() == WRONGS.keys()
    for then, (retries, session, error) in failed.items():
        assert (retries, session) == (1, None), then
        assert WRONGS[then] in error, then
    effects = {job for (job,) in conn.execute(EFFECTS)}
    # COMMIT in SQL can't be prevented, only named
    assert effects - {ids["sql commit"]} == set(good), "the next job is unharmed"


@both
@pytest.mark.parametrize("then", ["cancel", "snooze"])
async def test_another_end_takes_the_effect_back_too(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Effect], then: str
) -> None:
    """Cancel and Snooze say that the work was not done."""
    kind(then=then).enqueue(conn)
    await drain(pool, kind, context=World())
    assert conn.execute(EFFECTS).fetchall() == []
    kept = conn.execute("SELECT state FROM archived_jobs").fetchall()
    waits = conn.execute("SELECT retries FROM background_jobs").fetchall()
    assert (kept, waits) == (([("cancelled",)], []) if then == "cancel" else ([], [(0,)]))


@both
async def test_a_stale_claim_runs_nothing(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Effect]
) -> None:
    """A job that was taken away between claim and start is skipped: its code does not run, nothing is written."""
    conn.execute(
        """
        CREATE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN UPDATE background_jobs SET claim_token = -1 WHERE id = NEW.id; RETURN NULL; END $$;
        CREATE TRIGGER steal AFTER UPDATE ON background_jobs FOR EACH ROW
            WHEN (NEW.claim_token > 0 AND NEW.job_type LIKE 'effect%') EXECUTE FUNCTION steal();
        """
    )

    class Plain(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.signal("plain ran")

    kind().enqueue(conn)
    world = World()
    with listening_to(JobFinished) as finished:
        async with running(pool, kind, Plain, context=world, workers=1):
            await eventually(conn, "SELECT claim_token FROM background_jobs", [(-1,)])
            Plain().enqueue(conn)
            await world.wait("plain ran")
    assert world.seen == []
    assert [event.job.job_type for event in finished] == ["plain"], "it has no outcome here"
    assert conn.execute(EFFECTS).fetchall() == []
    assert (0, False, None) in conn.execute(ROWS).fetchall()


@both
async def test_archive_in_the_same_transaction(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Effect]
) -> None:
    """archive=True moves the row where the effect is committed."""
    keeping = type(kind.__name__, (kind,), {"archive": True, "__annotations__": {}})
    job_id = keeping().enqueue(conn)
    await drain(pool, keeping, context=World())
    query = "SELECT id, state, archived_jobs.xmin::text = effects.xmin::text FROM archived_jobs JOIN effects ON job = id"
    assert conn.execute(query).fetchall() == [(job_id, "completed", True)]


@both
async def test_connections_are_their_own(
    database_url: str, conn: psycopg.Connection, kind: type[Effect]
) -> None:
    """A pool of one serves several that run at once: it is neither theirs nor kept waiting by them; then they are reused."""
    async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as small:
        kind.enqueue_batch(conn, [kind(then="wait") for _ in range(4)])
        world = World()
        async with running(small, kind, context=world, workers=4):
            await eventually(conn, ROWS, [(0, False, None)] * 4)
            async with asyncio.timeout(10):
                while len(world.seen) < 4:  # noqa: ASYNC110 - the jobs say it one by one
                    await asyncio.sleep(0.01)
            async with small.connection() as borrowed:
                assert borrowed.info.backend_pid not in world.seen
            world.signal("may end")
            await eventually(conn, ROWS, [])
            kind.enqueue_batch(conn, [kind() for _ in range(20)])
            await eventually(conn, "SELECT count(*) FROM effects", [(24,)])
    assert len(set(world.seen)) == 4


async def test_a_job_that_ran_out_of_time_commits_nothing(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Neither one that swallowed its cancellation nor one in a thread, which ends by itself."""

    class Late(BackgroundJob[World]):
        transactional = True
        timeout = 0.1

        async def run(self, ctx: World) -> None:
            await current_job().connection.execute(INSERT, [1])
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)

    class LateInThread(BackgroundJob[World]):
        transactional = True
        timeout = 0.1

        def run(self, ctx: World) -> None:
            current_job().connection.execute(b"SELECT pg_sleep(0.3)")
            current_job().connection.execute(INSERT, [2])

    Late().enqueue(conn)
    LateInThread().enqueue(conn)
    await drain(pool, Late, LateInThread)
    assert conn.execute(EFFECTS).fetchall() == []
    rows = conn.execute(ROWS).fetchall()
    assert [(retries, free) for retries, free, _ in rows] == [(1, True)] * 2
    assert all(error.startswith("timed out after 0.1 s (ended") for _, _, error in rows)


async def test_no_transaction_can_be_begun(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt is counted: the job's code never began. It is tried again a little later."""
    from workers.storage.postgres.transactions import TransactionConnections

    async def refuse(self: object) -> None:
        raise psycopg.OperationalError("too many connections")

    connect = TransactionConnections.__init__

    def without(self: TransactionConnections, sync: Any, _: Any) -> None:
        connect(self, sync, lambda: refuse(self))  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(TransactionConnections, "__init__", without)
    Effect().enqueue(conn)
    await drain(pool, Effect, context=World())
    query = "SELECT retries, run_at BETWEEN now() AND now() + interval '6 s' FROM background_jobs"
    assert conn.execute(query).fetchall() == [(0, True)]
