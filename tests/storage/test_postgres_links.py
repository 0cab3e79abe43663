"""PostgreSQL's links under fire: terminated backends, small pools, and settings that are not ours."""

from __future__ import annotations

import anyio
from anyio import to_thread

from tests.storage.engines import LEASE, NEVER, PostgresEngine, ids, mails
from workers.errors import StorageUnavailableError
from workers.storage.postgres.watch import LinkWatch, _close


def terminate(postgres: PostgresEngine, session: int) -> None:
    """End the backend that holds a session's lock."""
    postgres.conn.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks"
        " WHERE locktype = 'advisory' AND granted AND classid = workers_lock_class()::oid AND objid = %s",
        [session],
    )


def test_the_end_of_the_process_is_no_error_of_who_waits() -> None:
    """What is done at exit closes the sockets, while a job in a thread that would not stop has kept the session's."""
    watch = LinkWatch()
    _close(watch._awake, watch._poke)
    watch.wait(None, 0.01)
    watch.poke()


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
