"""`transactional` jobs: what they write and that they are done commit together. Guarantee 3, rule 16."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.effects import EFFECTS, KINDS, Effect
from tests.helpers.running import World, drain, eventually, listening_to, running
from workers import BackgroundJob
from workers.telemetry import JobFinished

ROWS = "SELECT retries, session_id IS NULL, last_error FROM background_jobs"
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def effects(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE effects (job bigint)")


@both
async def test_effect_and_completion_commit_together(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Effect]
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
    ids = [kind(then=then).enqueue(conn) for then in ("return", "nested", "cancel itself")]
    await drain(pool, kind, context=World())
    query = (
        "SELECT job, effects.xmin::text = gone.xmin::text FROM effects FULL JOIN gone USING (job)"
    )
    assert conn.execute(query).fetchall() == [(job_id, True) for job_id in ids]
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
    "commit": "forbidden within a Transaction context",
    "rollback": "forbidden within a Transaction context",
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
async def test_another_end_takes_the_effect_back_too(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Effect]
) -> None:
    """Cancel and Snooze say that the work was not done."""
    cancelled, snoozed = (kind(then=then).enqueue(conn) for then in ("cancel", "snooze"))
    await drain(pool, kind, context=World())
    assert conn.execute(EFFECTS).fetchall() == []
    kept = conn.execute("SELECT id, state FROM archived_jobs").fetchall()
    waits = conn.execute("SELECT id, retries FROM background_jobs").fetchall()
    assert (kept, waits) == ([(cancelled, "cancelled")], [(snoozed, 0)])


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
