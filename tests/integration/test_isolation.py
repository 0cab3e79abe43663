"""Nothing of one job is seen by the next: rule 13, fault 21. Each runs in its own copy of the starter's context."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.from_thread
import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, eventually, running
from workers import BackgroundJob, WorkersError, current_job

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Set(BackgroundJob[World]):
    """Leaves a value in its context, at each point at which a job can."""

    async def run(self, ctx: World) -> None:
        ctx.note(tenant.get())
        tenant.set("left by an async job")
        await asyncio.sleep(0)
        assert tenant.get() == "left by an async job", "its own value survives an await"
        tenant.set("left after an await")


class SetInThread(BackgroundJob[World]):
    def run(self, ctx: World) -> None:
        ctx.note(tenant.get())
        tenant.set("left by a job in a thread")


class SetInBoth(BackgroundJob[World]):
    """First in a thread, then in the loop: one job, one context."""

    def run(self, ctx: World) -> Awaitable[None]:
        ctx.note(tenant.get())
        tenant.set("from the thread")
        return self.later()

    async def later(self) -> None:
        assert tenant.get() == "from the thread"
        tenant.set("left by both")


class Large:
    """Something that is worth its memory."""


large: ContextVar[Large] = ContextVar("large")


class Keep(BackgroundJob[World]):
    """Leaves something in its context."""

    timeout = 60.0

    async def run(self, ctx: World) -> None:
        large.set(kept := Large())
        ctx.note(weakref.ref(kept))
        await asyncio.sleep(0)
        assert current_job().remaining


class KeepInThread(BackgroundJob[World]):
    def run(self, ctx: World) -> None:
        large.set(kept := Large())
        ctx.note(weakref.ref(kept))
        assert current_job().attempt == 1


@pytest.mark.parametrize("job_class", [Keep, KeepInThread])
async def test_what_a_job_has_left_in_its_context_goes_with_it(
    pool: AsyncPool, conn: psycopg.Connection, job_class: type[BackgroundJob[World]]
) -> None:
    """Without waiting for the garbage collector, which services that look at their latency freeze or turn off."""
    world = World()
    job_class.enqueue_batch(conn, [job_class() for _ in range(5)])
    gc.disable()
    try:
        await drain(pool, job_class, context=world)
        left = [reference() for reference in world.seen]
    finally:
        gc.enable()
    assert left == [None] * 5


async def test_a_context_variable_of_one_job_is_not_seen_by_the_next(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Async and in threads, in every order, on one worker. They see what the starter had set."""
    order: list[type[BackgroundJob[World]]] = [Set, SetInThread, SetInBoth]
    for first in order:
        for second in order:
            first().enqueue(conn)
            second().enqueue(conn)
    token = tenant.set("the starter's")
    try:
        world = World()
        await drain(pool, Set, SetInThread, SetInBoth, context=world, workers=1)
    finally:
        tenant.reset(token)
    assert world.seen == ["the starter's"] * 18


async def test_jobs_that_run_at_the_same_time_keep_apart(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Interleaved at every await, and with tasks of their own."""

    class Interleaved(BackgroundJob[World]):
        number: int

        async def run(self, ctx: World) -> None:
            mine = str(self.number)
            tenant.set(mine)
            for _ in range(5):
                await asyncio.sleep(0)
                assert tenant.get() == mine
            async with asyncio.TaskGroup() as group:
                child = group.create_task(self.child())
            assert child.result() == mine
            assert current_job().id
            ctx.note(self.number)

        async def child(self) -> str:
            await asyncio.sleep(0)
            return tenant.get()

    Interleaved.enqueue_batch(conn, [Interleaved(number=number) for number in range(60)])
    world = World()
    await drain(pool, Interleaved, context=world)
    assert sorted(world.seen) == list(range(60))


async def test_what_a_job_leaves_running_keeps_its_context(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """A task that outlives its job sees that job's values, and harms no later one."""
    left: list[asyncio.Task[None]] = []

    class Leave(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            tenant.set("mine")
            left.append(asyncio.create_task(self.stay(ctx)))

        async def stay(self, ctx: World) -> None:
            await ctx.wait("the next one has run")
            ctx.note((tenant.get(), current_job().job_type))

    class Next(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.note((tenant.get(), current_job().job_type))
            ctx.signal("the next one has run")

    Leave().enqueue(conn)
    world = World()
    await drain(pool, Leave, context=world, workers=1)
    Next().enqueue(conn)
    await drain(pool, Next, context=world, workers=1)
    await asyncio.gather(*left)
    assert world.seen == [("nobody", "next"), ("mine", "leave")]


async def test_current_job(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """id, attempt, queue and an idempotency key, in the loop, in threads and in threads that a job starts."""

    class Ask(BackgroundJob[World]):
        backoff = 0
        in_thread: bool

        def run(self, ctx: World) -> Any:
            return self.tell(ctx) if self.in_thread else self.later(ctx)

        async def later(self, ctx: World) -> None:
            await asyncio.to_thread(self.tell, ctx)

        def tell(self, ctx: World) -> None:
            job = current_job()
            ctx.note((job.id, job.job_type, job.queue, job.priority, job.attempt, job.claim_token))
            assert job.deadline is None
            assert job.remaining is None
            with pytest.raises(WorkersError, match="not transactional"):
                _ = job.connection
            if job.attempt < 3:
                raise ValueError

    ids = [Ask(in_thread=flag).enqueue(conn, priority=3) for flag in (True, False)]
    world = World()
    async with running(pool, Ask, context=world):
        await eventually(conn, "SELECT id FROM background_jobs", [])
    for job_id in ids:
        told = [(*about, attempt) for found, *about, attempt, _ in world.seen if found == job_id]
        assert told == [("ask", "default", 3, attempt) for attempt in (1, 2, 3)]
        tokens = {token for found, *_, token in world.seen if found == job_id}
        assert len(tokens) == 3, "every claim has another one"
    with pytest.raises(WorkersError, match="for the code of a running job"):
        current_job()


async def test_the_context_is_typed_and_handed_over_as_it_is(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """The very object, in the loop and in threads; `def run` does not run in the loop's thread."""

    class Here(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.note((id(ctx), threading.get_ident()))

    class There(BackgroundJob[World]):
        def run(self, ctx: World) -> None:
            ctx.note((id(ctx), threading.get_ident()))

    Here().enqueue(conn)
    There().enqueue(conn)
    world = World()
    await drain(pool, Here, There, context=world)
    assert {found for found, _ in world.seen} == {id(world)}
    assert len({thread for _, thread in world.seen}) == 2
    assert threading.get_ident() in {thread for _, thread in world.seen}


async def test_a_thread_may_use_the_loop_or_have_one_of_its_own(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """anyio.from_thread reaches the runner's loop; asyncio.run and anyio.run work too."""

    class Call(BackgroundJob[World]):
        def run(self, ctx: World) -> None:
            async def where() -> int:
                await asyncio.sleep(0)
                return threading.get_ident()

            here = threading.get_ident()
            ctx.note(anyio.from_thread.run(where) != here)
            ctx.note(asyncio.run(where()) == here)
            ctx.note(anyio.run(where) == here)

    Call().enqueue(conn)
    world = World()
    await drain(pool, Call, context=world)
    assert world.seen == [True] * 3
    assert conn.execute("SELECT last_error FROM background_jobs").fetchall() == []


async def test_whatever_run_returns_is_awaited_if_it_can_be(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """A coroutine, a future, an object with __await__; anything else is ignored."""

    class HandMade:
        def __init__(self, ctx: World) -> None:
            self.ctx = ctx

        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            self.ctx.note("object")

    class Return(BackgroundJob[World]):
        what: str

        def run(self, ctx: World) -> Any:
            match self.what:
                case "coroutine":
                    return self.later(ctx)
                case "object":
                    return HandMade(ctx)
                case "failure":
                    return self.fail()
                case _:
                    return 42

        async def later(self, ctx: World) -> None:
            await asyncio.sleep(0)
            ctx.note("coroutine")

        async def fail(self) -> None:
            raise ValueError("later")

    Return.enqueue_batch(
        conn, [Return(what=what) for what in ("coroutine", "object", "number", "failure")]
    )
    world = World()
    await drain(pool, Return, context=world)
    assert sorted(world.seen) == ["coroutine", "object"]
    query = "SELECT data->>'what', last_error LIKE '%later' || chr(10) FROM background_jobs"
    assert conn.execute(query).fetchall() == [("failure", True)]


async def test_what_is_thrown_into_a_job_finds_its_own_context(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """A timeout strikes by an exception, not by a value; `except` and `finally` are the job's code too."""

    class Late(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            tenant.set("its own")
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(10)
            except TimeoutError:
                ctx.note(tenant.get())
            tenant.set("its own, afterwards")
            await asyncio.sleep(0)
            ctx.note(tenant.get())

    Late().enqueue(conn)
    world = World()
    await drain(pool, Late, Set, context=world, workers=1)
    Set().enqueue(conn)
    await drain(pool, Late, Set, context=world, workers=1)
    assert world.seen == ["its own", "its own, afterwards", "nobody"]
