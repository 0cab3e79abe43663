"""Rows that somebody else holds: bulk statements pass them by, and what is still on its way is not taken for gone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest
from anyio import to_thread
from psycopg.types.json import Jsonb

from tests.storage.engines import LEASE, PostgresEngine, Runner, ids, mail, mails
from tests.storage.test_outcomes import EVERY_TRANSITION
from workers import migrate
from workers.errors import StorageError, StorageUnavailableError
from workers.lifecycle import Release, Transition
from workers.storage.base import DeadSession, Guard
from workers.storage.postgres import apart, checkout, staging
from workers.storage.postgres.claiming import THOROUGH

JOB = b"SELECT FROM background_jobs WHERE id = %s FOR UPDATE"
LOCK = "workers_lock_class(), %s::integer"
SESSION = b"SELECT FROM worker_sessions WHERE id = %s FOR UPDATE"


@asynccontextmanager
async def held(conn: psycopg.AsyncConnection, query: bytes, row: int | None) -> AsyncIterator[None]:
    """In a transaction that has locked a row; whoever waits for it instead of passing it by waits in vain."""
    async with conn.transaction():
        await conn.execute(query, [row])
        with anyio.fail_after(10):
            yield


def suspect(runner: Runner) -> None:
    """A first sweep. (Moving the time writes to all rows: not while they are locked.)"""
    runner.maintain()
    runner.engine.advance(1)


def sweep(runner: Runner) -> list[DeadSession]:
    """The second one, that buries."""
    runner.maintain()
    return runner.control.rescue()


async def test_staging_passes_by_what_is_locked(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rules 5 and 8: it is staged the next time."""
    runner = postgres.runner()
    locked, free = await postgres.storage.enqueue(mails(2, delay=10))
    postgres.advance(10)
    async with held(aconn, JOB, locked):
        await to_thread.run_sync(runner.maintain)
        assert ids(await runner.take()) == [free]
    runner.maintain()
    assert ids(await runner.take()) == [locked]


async def test_homing_passes_by_what_is_locked(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rules 5 and 6."""
    runner = postgres.runner()
    locked, free = await postgres.storage.enqueue(mails(2, queue=None))
    async with held(aconn, JOB, locked):
        await to_thread.run_sync(runner.maintain)
        assert ids(await runner.take()) == [free]
    runner.maintain()
    assert ids(await runner.take()) == [locked]


async def test_what_is_due_is_looked_for_less_often_while_that_is_slow(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 8: nothing is read for it meanwhile, and 5 s later it is found. One slow look is not believed."""
    runner = postgres.runner()
    scans = (
        "SELECT sum(idx_scan) FROM pg_stat_user_indexes"
        " WHERE indexrelname IN ('background_jobs_due', 'background_jobs_homeless')"
        " AND schemaname = current_schema()"
    )

    async def maintain() -> None:
        await to_thread.run_sync(runner.maintain)

    async def slowly() -> None:
        async with anyio.create_task_group() as tasks, aconn.transaction():
            await aconn.execute("LOCK TABLE background_jobs")
            tasks.start_soon(maintain)
            await postgres.wait_blocked()
            postgres.now += 2

    async def available() -> list[int]:
        postgres.conn.execute(
            "INSERT INTO background_jobs (job_type, data, queue, run_at)"
            " VALUES ('mail', '{}', 'default', now()), ('mail', '{}', NULL, NULL)"
        )
        runner.maintain()
        return ids(await runner.take())

    def scanned() -> int:
        runner.control._fetch("SELECT pg_stat_force_next_flush()")  # type: ignore[attr-defined]
        ((count,),) = postgres.conn.execute(scans)
        return int(count)

    runner.maintain()
    await slowly()
    assert len(await available()) == 2
    await slowly()
    await slowly()
    before = scanned()
    assert await available() == []
    assert scanned() == before
    postgres.now += staging.MOST
    runner.maintain()
    assert len(await runner.take()) == 2


async def test_homing_locks_no_more_than_it_moves(postgres: PostgresEngine) -> None:
    """10,000 in all, however many types there are, highest first; and it says that there are more."""
    runner = postgres.runner()
    postgres.conn.execute(
        "INSERT INTO background_jobs (job_type, data, priority)"
        " SELECT kind, '{}', n % 2 FROM unnest('{mail,report}'::text[]) AS kind, generate_series(1, 10000) AS n"
    )
    known = {"mail": "default", "report": "default"}
    assert runner.maintain(known).more
    left = "SELECT priority, xmax <> '0' AS locked, count(*) FROM background_jobs WHERE queue IS NULL GROUP BY 1, 2"
    assert postgres.conn.execute(left).fetchall() == [(0, False, 10_000)]
    assert runner.maintain(known).more
    assert not runner.maintain(known).more
    assert postgres.conn.execute(left).fetchall() == []


@pytest.mark.parametrize("transition", EVERY_TRANSITION, ids=repr)
@pytest.mark.parametrize("deduplicated", [False, True])
async def test_outcomes_pass_by_what_is_locked(
    postgres: PostgresEngine,
    aconn: psycopg.AsyncConnection,
    transition: Transition,
    deduplicated: bool,
) -> None:
    """Rule 14: somebody who looks at one row in an open transaction does not hold up the outcomes of others. It is reported,
    and the claim that it stands under is not forgotten."""
    runner = postgres.runner()
    await postgres.storage.enqueue([mail(n, deduplicated=deduplicated) for n in range(3)])
    jobs = await runner.take(token=7)
    locked, *free = ids(jobs)
    async with held(aconn, JOB, locked):
        done = await runner.settle(jobs, transition, closed=[7])
        assert (set(done.written), set(done.blocked)) == (set(free), {locked})
    again = await runner.settle(jobs[:1], transition, closed=[7])
    assert (list(again.written), list(again.blocked)) == ([locked], [])
    assert runner.control.claims() == {}


async def test_completions_pass_by_what_is_locked(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 14: in plain batches, too."""
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(500))
    jobs = await runner.take(500, token=7)
    guards = [Guard(job.id, job.token) for job in jobs]
    async with held(aconn, JOB, jobs[100].id):
        done = await postgres.storage.complete(runner.session, guards, [7])
        assert (len(done.written), list(done.blocked)) == (499, [jobs[100].id])
        assert list(runner.control.claims()) == [7]
    done = await postgres.storage.complete(runner.session, guards[100:101], [7])
    assert list(done.written) == [jobs[100].id]
    assert runner.control.claims() == {}


async def test_a_session_that_ends_passes_by_what_is_locked(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 24: the others go back uncounted; that one is for a sweep."""
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue(mails(3))
    locked, *free = ids(await runner.take())
    async with held(aconn, JOB, locked):
        released = await to_thread.run_sync(runner.control.close)
        assert (set(released.written), list(released.blocked)) == (set(free), [locked])
        assert ids(await other.take()) == free
    other.bury()
    assert [job.crashes for job in await other.take(suspects=1)] == [1]


async def test_a_sweep_passes_by_sessions_that_are_locked(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 5: somebody is just renewing or judging it; the next sweep will see."""
    runner, other = postgres.runner(), postgres.runner("other")
    await other.crash()
    suspect(runner)
    async with held(aconn, SESSION, other.session):
        assert await to_thread.run_sync(sweep, runner) == []
    sweep(runner)
    assert postgres.sessions() == {runner.session}


@pytest.mark.parametrize("deduplicated", [False, True])
async def test_rescue_leaves_what_is_locked_to_the_next_sweep(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection, deduplicated: bool
) -> None:
    """Rules 4 and 5: a claim with a row that could not be given back stays, and so does its session."""
    runner, other = postgres.runner(), postgres.runner("other")
    locked, free = await postgres.storage.enqueue(mails(2, deduplicated=deduplicated))
    await other.take(token=7)
    await other.crash()
    suspect(runner)
    async with held(aconn, JOB, locked):
        [dead] = await to_thread.run_sync(sweep, runner)
        assert dead.jobs == 1
        assert postgres.claims_of(other.session) == {7: {locked, free}}
        assert other.session in postgres.sessions()
        assert ids(await runner.take(suspects=1)) == [free]
    [dead] = runner.control.rescue()
    assert dead.jobs == 1
    assert postgres.sessions() == {runner.session}
    assert ids(await runner.take(suspects=1)) == [locked]


async def test_a_rescue_that_takes_long_goes_on_in_parts(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 26: payloads may be such that one statement for all would take longer than the link waits, each time anew."""
    monkeypatch.setattr(apart, "_LONGEST", "250ms")
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue(mails(16, deduplicated=True))
    await other.take(limit=16)
    await other.crash()
    suspect(runner)
    postgres.conn.execute(
        """
        CREATE TABLE took (seconds float);
        CREATE FUNCTION crawl() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_sleep(0.05);
            INSERT INTO took SELECT extract(epoch FROM clock_timestamp() - statement_timestamp());
            RETURN NULL;
        END $$;
        CREATE TRIGGER crawl AFTER DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION crawl();
        """
    )
    given_back: list[int] = []
    while sum(given_back) < 16 and len(given_back) < 50:
        given_back.append(sum(session.jobs for session in sweep(runner)))
    assert sum(given_back) == 16
    assert given_back[0] < 16, "the lease is waiting to be renewed"
    ((longest, rows),) = postgres.conn.execute("SELECT max(seconds), count(*) FROM took").fetchall()
    assert rows == 16
    assert longest < 0.5, "0.8 s it would be at once"


async def test_a_session_stays_while_a_claim_of_it_is_on_its_way(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 4: what the claim takes is seen by the sweep after it, and is not left behind."""
    runner, other = postgres.runner(), postgres.runner("other")
    [job_id] = await postgres.storage.enqueue(mails(1))
    await other.crash()
    suspect(runner)
    async with aconn.transaction():
        await claim(aconn, other.session)
        with anyio.fail_after(10):
            assert await to_thread.run_sync(sweep, runner) == []
        assert other.session in postgres.sessions()
    [dead] = sweep(runner)
    assert (dead.session, dead.jobs) == (other.session, 1)
    assert postgres.sessions() == {runner.session}
    assert ids(await runner.take(suspects=1)) == [job_id]


async def test_a_session_that_ends_waits_for_its_claim(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 4: a claim that lands while the session is closed is given back with the others, at once."""
    runner, other = postgres.runner(), postgres.runner("other")
    [job_id] = await postgres.storage.enqueue(mails(1))
    async with anyio.create_task_group() as tasks, aconn.transaction():
        await claim(aconn, runner.session)
        tasks.start_soon(to_thread.run_sync, runner.control.close)
        await postgres.wait_blocked()
    assert postgres.sessions() == {other.session}
    assert ids(await other.take()) == [job_id]


async def test_a_session_that_can_not_give_everything_back_stays(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rules 4 and 26: what is held up by an open transaction is found by the next sweep."""
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue([mail(1, deduplicated=True), mail(2)])
    await runner.take(token=7)
    async with aconn.transaction(force_rollback=True):
        same = "SELECT workers_enqueue('mail', %s, 'default', deduplicated => true)"
        await aconn.execute(same, [Jsonb({"number": 1})])
        assert (await to_thread.run_sync(runner.control.close)).count == 1
        assert runner.session in postgres.sessions()
        assert 7 in postgres.claims_of(runner.session)
    [dead] = other.bury()
    assert (dead.session, dead.jobs) == (runner.session, 1)
    assert postgres.sessions() == {other.session}


async def test_session_ids_run_out_rather_than_come_again(postgres: PostgresEngine) -> None:
    """Rule 17: two runners with one id would write on each other's claims."""
    postgres.conn.execute("SELECT setval('worker_sessions_id_seq', 2147483646)")
    postgres.runner()
    with pytest.raises(StorageError, match="maximum value"):
        postgres.runner()


async def test_a_session_id_that_comes_again_is_another_session(postgres: PostgresEngine) -> None:
    """Rule 17: somebody empties the tables under living runners, or restores them."""
    runner = postgres.runner()
    postgres.conn.execute("TRUNCATE worker_sessions, worker_claims RESTART IDENTITY")
    postgres.conn.execute("SELECT setval('worker_sessions_id_seq', %s, false)", [runner.session])
    other = postgres.runner("other")
    assert other.session == runner.session
    assert not runner.maintain().alive
    assert not runner.control.recover(LEASE)
    assert other.maintain().alive
    assert other.control.recover(LEASE)


async def claim(conn: psycopg.AsyncConnection[Any], session: int) -> None:
    """What a claim does, on a connection that has not committed."""
    params = {
        "session": session,
        "token": 9,
        "queue": "default",
        "job_types": ["mail"],
        "limit": 10,
    }
    await conn.execute(THOROUGH, params)


async def test_a_lease_is_not_written_every_second(postgres: PostgresEngine) -> None:
    """Rule 18: only when a third of it is gone, or an idle runner would never stop writing."""
    runner = postgres.runner()
    version = "SELECT xmin, lease_until > now() + interval '14 seconds' FROM worker_sessions"
    before = postgres.conn.execute(version).fetchone()
    runner.maintain()
    assert postgres.conn.execute(version).fetchone() == before
    postgres.advance(6)
    runner.maintain()
    after = postgres.conn.execute(version).fetchone()
    assert before is not None
    assert after is not None
    assert (after != before, after[1]) == (True, True)


async def test_another_schema_has_other_locks(postgres: PostgresEngine) -> None:
    """Rule 18: session 7 of one schema is not alive because there is a session 7 in another one."""
    lock_class = "SELECT workers_lock_class(), workers_channel()"
    with psycopg.connect(postgres.conn.info.dsn, autocommit=True) as conn:
        schema = f"{postgres.conn.execute('SELECT current_schema()').fetchone()[0]}_other"  # type: ignore[index]
        conn.execute(f"CREATE SCHEMA {schema}".encode())
        try:
            conn.execute(f"SET search_path = {schema}".encode())
            migrate(conn)
            theirs = conn.execute(lock_class).fetchone()
        finally:
            conn.execute(f"DROP SCHEMA {schema} CASCADE".encode())
    ours = postgres.conn.execute(lock_class).fetchone()
    assert ours is not None
    assert theirs is not None
    assert ours[0] != theirs[0]
    assert ours[1] != theirs[1]


async def test_the_same_lock_in_another_database_is_no_sign_of_life(
    postgres: PostgresEngine,
) -> None:
    """Rule 18: advisory locks belong to a database, and pg_locks shows those of all."""
    runner, other = postgres.runner(), postgres.runner("other")
    await other.crash()
    name = f"other_{os.getpid()}"
    postgres.conn.execute(f"CREATE DATABASE {name}".encode())
    try:
        with psycopg.connect(postgres.conn.info.dsn, dbname=name, options="") as conn:
            key = postgres.conn.execute("SELECT workers_lock_class()").fetchone()
            assert key is not None
            conn.execute("SELECT pg_advisory_lock(%s, %s::integer)", [key[0], other.session])
            runner.bury()
    finally:
        postgres.conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    assert postgres.sessions() == {runner.session}


async def test_a_lock_that_was_taken_again_ends_the_suspicion(postgres: PostgresEngine) -> None:
    """Rule 19: the next free lock is a new suspicion, and needs two sweeps again."""
    runner, other = postgres.runner(), postgres.runner("other")
    suspicion = "SELECT suspect_since IS NOT NULL FROM worker_sessions WHERE id = %s"
    for ended_by in ("recover", "sweep"):
        await other.crash()
        runner.maintain()
        assert postgres.conn.execute(suspicion, [other.session]).fetchone() == (True,)
        if ended_by == "recover":
            assert other.control.recover(15)
        else:
            other.control._reconnect()  # type: ignore[attr-defined]  # the lock alone
            other.control._link.lock(other.session)  # type: ignore[attr-defined]
            runner.maintain()
        assert postgres.conn.execute(suspicion, [other.session]).fetchone() == (False,)


async def test_a_lock_that_could_not_be_had_is_tried_for_again(postgres: PostgresEngine) -> None:
    """Rule 18: the server had not given up on the old connection yet."""
    runner = postgres.runner()
    await runner.crash()
    lock = "(workers_lock_class(), %s::integer)"
    postgres.conn.execute(f"SELECT pg_advisory_lock{lock}".encode(), [runner.session])
    assert runner.control.recover(15)
    postgres.conn.execute(f"SELECT pg_advisory_unlock{lock}".encode(), [runner.session])
    runner.maintain()
    held = postgres.conn.execute(f"SELECT pg_try_advisory_lock{lock}".encode(), [runner.session])
    assert held.fetchone() == (False,)


async def without_lock(postgres: PostgresEngine, *, anew: bool) -> Runner:
    """A runner whose lock the test holds, since it began or since its link broke."""
    if anew:
        ((last,),) = postgres.conn.execute("SELECT nextval('worker_sessions_id_seq')")
        postgres.conn.execute(f"SELECT pg_advisory_lock({LOCK})", [last + 1])
        return postgres.runner()
    runner = postgres.runner()
    await runner.crash()
    postgres.conn.execute(f"SELECT pg_advisory_lock({LOCK})", [runner.session])
    assert runner.control.recover(15)
    return runner


@pytest.mark.parametrize("anew", [False, True])
async def test_who_lets_go_of_the_lock_of_another_kills_nobody(
    postgres: PostgresEngine, anew: bool
) -> None:
    """Rules 18 and 19: a session that could not have its lock is judged by its lease, until it has it."""
    other, runner = postgres.runner("other"), await without_lock(postgres, anew=anew)
    postgres.now += 5
    other.maintain()
    postgres.conn.execute(f"SELECT pg_advisory_unlock({LOCK})", [runner.session])
    assert other.bury() == []  # two sweeps between two ticks of the owner
    assert runner.maintain().alive
    await runner.crash()
    other.bury()
    assert postgres.sessions() == {other.session}, "its lock speaks for it again"


async def test_a_lock_that_comes_late_ends_an_old_suspicion(postgres: PostgresEngine) -> None:
    """Rule 19: a sweep that began before the link came back may have marked it since."""
    other, runner = postgres.runner("other"), await without_lock(postgres, anew=False)
    mark = "UPDATE worker_sessions SET suspect_since = now() - interval '1 minute' WHERE id = %s"
    postgres.conn.execute(mark, [runner.session])
    postgres.conn.execute(f"SELECT pg_advisory_unlock({LOCK})", [runner.session])
    assert runner.maintain().alive
    await runner.crash()
    other.maintain()
    assert runner.session in postgres.sessions()
    assert runner.control.recover(15)


async def test_the_lease_of_who_has_no_lock_still_runs_out(postgres: PostgresEngine) -> None:
    """Rule 18: whoever holds the lock of a runner that was killed keeps its jobs for a lease, and no longer."""
    other, runner = postgres.runner("other"), await without_lock(postgres, anew=False)
    await postgres.storage.enqueue(mails(1))
    await runner.take()
    runner.control.abandon()
    for _ in range(2):
        postgres.advance(8)
        other.maintain()
    [dead] = other.control.rescue()
    assert (dead.session, dead.jobs) == (runner.session, 1)


async def test_first_the_lock_then_the_row(postgres: PostgresEngine) -> None:
    """Rule 4: a row without a lock is a death."""
    control = postgres.storage.control()
    async with anyio.create_task_group() as tasks:
        with postgres.conn.transaction():
            postgres.conn.execute("LOCK TABLE worker_sessions IN SHARE MODE")
            tasks.start_soon(to_thread.run_sync, partial(control.open, "late", 15))
            await postgres.wait_blocked()
            held = postgres.conn.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                " AND classid = (workers_lock_class()::bigint & 4294967295)::oid"
            ).fetchone()
    control.close()
    assert held == (1,)


async def test_a_claim_that_lands_while_it_is_given_up_is_not_forgotten(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2: nothing stood under the token a moment ago; the session finds it by its claim."""
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(1))
    links: Any = postgres.storage._checkout  # type: ignore[attr-defined]
    search = links.search
    landed: list[bool] = []

    async def lands_after(sql: str, params: dict[str, Any], **more: Any) -> Any:
        rows = await search(sql, params, **more)
        if not landed:
            landed.append(True)
            assert rows == []
            assert len(await runner.take(token=7)) == 1
        return rows

    monkeypatch.setattr(links, "search", lands_after)
    assert (await postgres.storage.release_claim(runner.session, 7)).count == 0
    assert set(runner.control.claims()) == {7}


@pytest.mark.parametrize(
    "kind", [psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected]
)
async def test_what_the_server_broke_off_is_done_again(
    postgres: PostgresEngine, kind: type[psycopg.Error]
) -> None:
    """Rule 5: 40001 and 40P01."""
    calls: list[int] = []

    async def work(conn: psycopg.AsyncConnection[Any]) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise kind("broken off")
        return "done"

    assert await postgres.storage._checkout.run(work) == "done"  # type: ignore[attr-defined]


async def test_no_statement_takes_for_ever(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 29: it is bounded in time, and then counts as not carried out."""
    monkeypatch.setattr(checkout, "STATEMENT_SECONDS", 0.2)
    with psycopg.connect(postgres.conn.info.dsn, options=postgres.conn.info.options) as locker:
        locker.execute("LOCK TABLE background_jobs")
        with pytest.raises(StorageUnavailableError), anyio.fail_after(20):
            await postgres.storage.find(1)


async def test_rescue_does_not_take_another_session_for_the_dead_one(
    postgres: PostgresEngine,
) -> None:
    """Guarantee 2: tokens are a runner's own numbers; a stale claim of the dead one may have the same."""
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue(mails(1))
    await other.settle(await other.take(token=7), Release())  # its claim is not closed
    jobs = await runner.take(token=7)
    await other.crash()
    runner.bury()
    assert await runner.complete(jobs) == set(ids(jobs))
