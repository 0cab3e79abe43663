"""Coroutines that run elsewhere or later."""

from __future__ import annotations

import asyncio
import gc
import warnings

import anyio

from workers.runtime.driving import Deferred


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
