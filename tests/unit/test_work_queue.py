"""Claimed jobs on their way to the workers: none is started under a lease that may be over. Guarantee 2."""

from __future__ import annotations

import asyncio
import math
import time

from workers.config import QueueConfig
from workers.job import ClaimedJob
from workers.runtime.work_queue import WorkQueue


def jobs(count: int) -> list[ClaimedJob]:
    return [ClaimedJob(n, "mail", "default", 0, "{}", 0, 0, False, 1) for n in range(count)]


async def test_a_lease_that_may_be_over_is_asked_about_first() -> None:
    """A process that stood still finds its session reaped, and its jobs with others, only a moment later."""
    queue = WorkQueue("default", QueueConfig())
    queue.put(jobs(2))
    queue.renewed(time.monotonic() + 3600)
    assert queue.pop(time.monotonic()) is not None
    queue.renewed(time.monotonic())
    assert queue.pop(time.monotonic()) is None
    queue.active = 1
    worker = asyncio.create_task(queue.wait())
    await asyncio.sleep(0)
    assert not worker.done()
    queue.renewed(math.inf)
    await worker
    assert queue.pop(time.monotonic()) is not None


async def test_a_closed_queue_keeps_no_worker_waiting_for_a_lease() -> None:
    queue = WorkQueue("default", QueueConfig())
    queue.put(jobs(1))
    queue.renewed(time.monotonic())
    queue.active = 1
    worker = asyncio.create_task(queue.wait())
    await asyncio.sleep(0)
    queue.close()
    await worker
    assert queue.closed
