"""How many jobs are claimed in advance. Rule 12."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.config import QueueConfig
from workers.job import ClaimedJob
from workers.runtime.demand import HORIZON, MIN_RUNS, MOST_PREFETCH, Demand
from workers.runtime.work_queue import WorkQueue


def after(durations: list[float], workers: int = 10) -> Demand:
    demand = Demand(workers)
    for duration in durations:
        demand.ran(duration)
    return demand


def test_none_before_enough_runs_are_known() -> None:
    assert after([0.0] * (MIN_RUNS - 1)).prefetch == 0
    assert after([0.0] * MIN_RUNS).prefetch == MOST_PREFETCH


@pytest.mark.parametrize(
    ("seconds", "workers", "expected"),
    [
        (0.00001, 10, 1000),
        (0.001, 10, 500),
        (0.01, 10, 50),
        (0.01, 1, 5),
        (0.1, 10, 5),
        (0.6, 10, 0),
        (10, 100, 0),
    ],
)
def test_as_many_as_the_workers_start_soon(seconds: float, workers: int, expected: int) -> None:
    """What `workers` start within HORIZON; long jobs are not claimed in advance at all."""
    assert after([seconds] * MIN_RUNS, workers).prefetch == expected


def test_two_claims_are_held_only_while_they_are_started_in_time() -> None:
    """The queue may not have the loop for itself."""
    demand = after([0.00001] * MIN_RUNS)
    demand.overslept()
    assert demand.prefetch == 0
    for _ in range(MIN_RUNS):
        demand.ran(0.00001)
    assert demand.prefetch == 500


def test_the_p95_decides() -> None:
    """One long run among twenty is seen; one among a hundred is not."""
    assert after([0.001] * 19 + [1.0]).prefetch == 0
    assert after([0.001] * 99 + [1.0]).prefetch == 500


def test_a_change_for_the_worse_is_seen_at_once() -> None:
    demand = after([0.001] * 128)
    assert demand.prefetch == 500
    for _ in range(7):
        demand.ran(10.0)
    assert demand.prefetch == 0


def test_a_change_for_the_better_is_seen_soon() -> None:
    demand = after([10.0] * 128)
    for _ in range(192):
        demand.ran(0.001)
    assert demand.prefetch == 500


def test_attempts_that_fail_at_once_tell_nothing() -> None:
    """Of a job that raises the first time and then takes 20 ms a thousand would be held."""
    demand = after([0.02] * 128)
    for _ in range(1000):
        demand.ran(0.00001, returned=False)
    assert demand.prefetch == 25


def test_attempts_that_fail_after_long_do_count() -> None:
    """Or a hundred would be held beside jobs that run out of time one by one."""
    demand = after([0.00001] * 128)
    for _ in range(10):
        demand.ran(1.0, returned=False)
    assert demand.prefetch == 0


def test_what_overslept_starts_anew() -> None:
    demand = after([0.001] * 128)
    demand.overslept()
    assert demand.prefetch == 0
    for _ in range(MIN_RUNS):
        demand.ran(0.001)
    assert demand.prefetch == 500


@given(st.lists(st.floats(0, 1e6), max_size=300), st.integers(1, 10_000))
def test_it_stays_within_bounds(durations: list[float], workers: int) -> None:
    prefetch = after(durations, workers).prefetch
    assert 0 <= prefetch <= MOST_PREFETCH
    assert prefetch <= workers * HORIZON / 1e-6


# ----------------------------------------------------------------------------------------------------------- the work queue


def job(job_id: int, token: int = 1) -> ClaimedJob:
    return ClaimedJob(job_id, "mail", "default", 0, "{}", 0, 0, False, token)


def test_jobs_come_out_in_the_order_of_the_claim() -> None:
    queue = WorkQueue("default", QueueConfig())
    queue.put([job(3), job(1), job(2)])
    assert [queue.pop(0.0), queue.pop(0.0), queue.pop(0.0), queue.pop(0.0)] == [
        job(3),
        job(1),
        job(2),
        None,
    ]


def test_jobs_that_were_not_started_can_be_taken_back() -> None:
    """All, or those of older claims."""
    queue = WorkQueue("default", QueueConfig())
    queue.put([job(1, token=1), job(2, token=1), job(3, token=2)])
    assert queue.oldest_token() == 1
    assert queue.take_back(1) == [job(1, token=1), job(2, token=1)]
    assert queue.take_back() == [job(3, token=2)]
    assert (len(queue), queue.oldest_token()) == (0, None)


async def test_room_is_made_by_workers_that_wait() -> None:
    """A claim takes what they can start, and what is to be held in advance once half of that is used up."""
    queue = WorkQueue("default", QueueConfig(num_workers=3))
    assert queue.room() == 0
    queue.active = 3
    waiting = [asyncio.ensure_future(queue.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert queue.attention.is_set()
    assert (queue.room(), queue.idle) == (3, 3)
    queue.put([job(1)])
    assert queue.idle == 0, "two wait, but it is not known yet whether they are needed"
    assert queue.room() == 0, "not while a job is on its way"
    queue.attention.clear()
    assert queue.pop(0.0) == job(1)
    assert queue.attention.is_set(), (
        "room again: what came meanwhile must not wait for the next poll"
    )
    assert queue.room() == 2
    queue.demand.prefetch = 10
    assert (queue.room(), queue.room(prefetch=False)) == (12, 2)
    queue.room()
    queue.put([job(number) for number in range(12)])
    await asyncio.sleep(0)
    for _ in range(6):
        queue.attention.clear()
        queue.pop(0.0)
    assert (queue.attention.is_set(), queue.room()) == (False, 0)
    queue.pop(0.0)
    assert (queue.attention.is_set(), queue.room()) == (True, 5)
    queue.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_a_cancelled_wait_takes_no_job_with_it() -> None:
    """Its place is free for another worker."""
    queue = WorkQueue("default", QueueConfig(num_workers=2))
    queue.active = 2
    first, second = asyncio.ensure_future(queue.wait()), asyncio.ensure_future(queue.wait())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert queue.idle == 1
    queue.active -= 1  # the cancelled one
    queue.put([job(1)])
    async with asyncio.timeout(5):
        await second
    assert queue.pop(0.0) == job(1)


async def test_as_many_are_woken_as_there_are_jobs_that_wait() -> None:
    queue = WorkQueue("default", QueueConfig(num_workers=50))
    queue.active = 50

    async def worker() -> None:
        await queue.wait()
        if queue.pop(0.0) is not None:
            queue.stands_still()

    workers = [asyncio.ensure_future(worker()) for _ in range(50)]
    await asyncio.sleep(0)
    queue.put([job(number) for number in range(10)])
    for _ in range(50):
        await asyncio.sleep(0)
    assert (sum(worker.done() for worker in workers), queue.active) == (10, 0)
    queue.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*workers)


async def test_no_worker_is_free_while_others_are_enough_for_the_jobs() -> None:
    """Else jobs that killed their process would be claimed in advance, and far more ordinary ones than can be started."""
    queue = WorkQueue("default", QueueConfig(num_workers=3))
    queue.active = 3
    waiting = [asyncio.ensure_future(queue.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.put([job(1), job(2)])
    await asyncio.sleep(0)
    queue.pop(0.0)
    queue.demand.prefetch = 10
    assert (queue.idle, queue.room()) == (0, 9)
    queue.pop(0.0)
    assert (queue.idle, queue.room()) == (2, 12)
    queue.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_one_worker_is_enough_for_jobs_that_never_wait() -> None:
    """More would only take turns with it. Once it stands still in a job the others take what is left."""
    queue = WorkQueue("default", QueueConfig(num_workers=3))
    queue.active = 3
    first, *others = [asyncio.ensure_future(queue.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.put([job(1), job(2)])
    async with asyncio.timeout(5):
        await first
    queue.put([job(3), job(4)])
    await asyncio.sleep(0)
    assert (queue.active, [waiter.done() for waiter in others]) == (1, [False, False])
    assert queue.pop(0.0) == job(1)
    queue.stands_still()
    async with asyncio.timeout(5):
        await asyncio.gather(*others)
    assert queue.active == 2
    aside = asyncio.ensure_future(queue.step_aside())
    await asyncio.sleep(0)
    assert (queue.active, aside.done()) == (1, False), "though there are jobs"
    queue.stands_still()
    async with asyncio.timeout(5):
        await aside


async def test_a_closed_queue_begins_nothing() -> None:
    """What is left in it, or put into it by a claim that was on its way, is there to be taken back."""
    queue = WorkQueue("default", QueueConfig())
    queue.active = 1
    waiting = asyncio.ensure_future(queue.wait())
    await asyncio.sleep(0)
    queue.put([job(1)])
    queue.close()
    queue.put([job(2)])
    async with asyncio.timeout(5):
        await waiting
        await queue.wait()
    assert queue.pop(0.0) is None
    assert queue.take_back() == [job(1), job(2)]
