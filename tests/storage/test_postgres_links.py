"""PostgreSQL's links under fire: terminated backends, small pools, and settings that are not ours."""

from __future__ import annotations

import random
from collections import Counter

import anyio
from anyio import to_thread

from tests.storage.engines import LEASE, NEVER, PostgresEngine, ids, mails
from workers.errors import StorageUnavailableError
from workers.lifecycle import Archive, Bury, Delete, Release, Retry, Transition, Wait

ENDS: list[Transition] = [
    Archive("completed"),
    Bury("over"),
    Delete(),
    Release(),
    Retry(0.0, "boom"),
    Wait(60.0),
]


def terminate(postgres: PostgresEngine, session: int) -> None:
    """End the backend that holds a session's lock."""
    postgres.conn.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks"
        " WHERE locktype = 'advisory' AND granted AND classid = workers_lock_class()::oid AND objid = %s",
        [session],
    )


async def test_a_terminated_control_link_is_noticed_at_once(postgres: PostgresEngine) -> None:
    """Rule 19: `pg_terminate_backend` on the control link ends its wait, and the session keeps its claims."""
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue(mails(2))
    jobs = await runner.take()
    terminate(postgres, runner.session)
    await to_thread.run_sync(runner.control.wait, NEVER)
    try:
        runner.maintain()
    except StorageUnavailableError:
        assert runner.control.recover(LEASE)
    else:
        raise AssertionError("the link should be gone")
    assert not other.maintain().rescue
    assert await runner.complete(jobs) == set(ids(jobs))


async def test_overlapping_settles_do_not_deadlock(postgres: PostgresEngine) -> None:
    """FAULTS 12: two writers of the same jobs, each in its own order; each job is written once, and nobody sees 40P01."""
    runner = postgres.runner()
    await postgres.storage.enqueue([*mails(100), *mails(100, deduplicated=True, priority=1)])
    jobs = await runner.take(200)
    written: Counter[int] = Counter()

    async def writer(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(4):
            some = order.sample(jobs, 150)
            plain, rest = some[:50], some[50:]
            written.update(await runner.complete(plain))
            settled = await runner.settle(rest, *order.choices(ENDS, k=len(rest)))
            written.update([*settled.written, *settled.superseded])

    async with anyio.create_task_group() as tasks:
        for seed in range(4):
            tasks.start_soon(writer, seed)
    assert set(written.values()) == {1}


async def test_a_deadlock_is_tried_again(postgres: PostgresEngine) -> None:
    """Rule 5: what the server breaks off to end a deadlock did nothing, and is done again."""
    postgres.conn.execute(
        "SET deadlock_timeout = '10s'"
    )  # let the other side be the one that notices
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(2))
    first, second = await runner.take()
    results: list[set[int]] = []

    async def complete() -> None:
        results.append(await runner.complete([first, second]))

    async with anyio.create_task_group() as tasks:
        with postgres.conn.transaction():
            postgres.conn.execute(
                "SELECT FROM background_jobs WHERE id = %s FOR UPDATE", [second.id]
            )
            tasks.start_soon(complete)
            await postgres.wait_blocked()
            postgres.conn.execute(
                "SELECT FROM background_jobs WHERE id = %s FOR UPDATE", [first.id]
            )
    assert results == [{first.id, second.id}]
