"""Coroutines that run elsewhere or later."""

from __future__ import annotations

import asyncio
import gc
import warnings

import anyio
import pytest

from workers.runtime.driving import Deferred, Shield


async def test_what_is_cancelled_before_its_first_step_leaves_nothing_to_warn_of() -> None:
    """As when a loop closes just after a runner has started."""
    begun: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = asyncio.all_tasks()
        async with anyio.create_task_group() as group:
            group.start_soon(Deferred, work, 1)
            for task in asyncio.all_tasks() - before:
                task.cancel()
        gc.collect()
    assert caught == []
    assert begun == []


async def test_it_runs_when_it_is_awaited() -> None:
    begun: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        begun.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(Deferred, work, 1)
        group.start_soon(Deferred, work, 2)
    assert begun == [1, 2]


async def test_a_shielded_loop_that_misses_a_cancellation_is_cancelled_again() -> None:
    """As one may whose own deadline is over in the same turn: then it takes the cancellation for that."""
    missed: list[int] = []

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            missed.append(1)
        await asyncio.Event().wait()

    async with asyncio.timeout(30), anyio.create_task_group() as group:
        group.start_soon(Shield().run, loop)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert missed == [1]


def test_an_exit_amid_a_step_leaves_the_loop_once() -> None:
    """A second time it would break off what the loop does to close everything."""
    closed: list[str] = []

    async def step() -> None:
        raise SystemExit(3)

    async def other() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            closed.append("in order")

    async def main() -> None:
        shield, task = Shield(), asyncio.create_task(other())
        await asyncio.sleep(0)
        await shield.run(lambda: shield.take(step))
        await task

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert closed == ["in order"]
