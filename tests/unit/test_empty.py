"""How `shutdown_when_queue_empty` knows: nothing held, nothing being written, and a thorough look that finds nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import pytest

from workers.errors import StorageUnavailableError
from workers.job import ClaimedJob
from workers.runtime.empty import EmptyWatch
from workers.runtime.ledger import Ledger
from workers.storage.base import Guard, Maintenance, Wake

EMPTY = Maintenance(alive=True)


class Surroundings:
    """Answers what the watch asks, and counts its looks."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.ledger.begin_session(1)
        self.idle = True
        self.sated = True
        self.maintenance: list[Maintenance | Exception] = []
        self.claims: list[Callable[[], int]] = []
        self.looks = 0

    def maintain_now(self) -> Future[Maintenance]:
        self.looks += 1
        future: Future[Maintenance] = Future()
        found = self.maintenance.pop(0) if self.maintenance else EMPTY
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)
        return future

    async def claim(self, limit: int, *, thorough: bool) -> int:
        assert (limit, thorough) == (1, True)
        return self.claims.pop(0)() if self.claims else 0

    async def looks_until_empty(self) -> int:
        done = asyncio.Event()
        me = cast(Any, self)
        watch = EmptyWatch(me, self.ledger, me, {"default": me})
        async with asyncio.timeout(5):
            await watch.run(done.set)
        assert done.is_set()
        return self.looks


async def test_one_look_is_enough() -> None:
    assert await Surroundings().looks_until_empty() == 1


@pytest.mark.parametrize(
    "found",
    [
        Maintenance(alive=False),
        Maintenance(alive=True, wakes=[Wake()]),
        Maintenance(alive=True, suspects={"default"}),
        Maintenance(alive=True, rescue=True),
        StorageUnavailableError("the link is down"),
    ],
)
async def test_what_housekeeping_finds_is_not_nothing(found: Maintenance | Exception) -> None:
    """Jobs that became due, jobs of dead sessions, suspects; and a store that can't be asked proves nothing."""
    around = Surroundings()
    around.maintenance = [found]
    assert await around.looks_until_empty() == 2


@pytest.mark.parametrize("came", [1, -1])
async def test_a_claim_that_finds_a_job_or_fails_proves_the_contrary(came: int) -> None:
    around = Surroundings()
    around.claims = [lambda: came]
    assert await around.looks_until_empty() == 2


async def test_a_job_that_came_and_went_meanwhile_counts() -> None:
    """It may have enqueued another one where the look had been already."""
    around = Surroundings()

    def come_and_go() -> int:
        token = around.ledger.begin_claim()
        job = ClaimedJob(1, "mail", "default", 0, "{}", 0, 0, False, token)
        around.ledger.claimed(token, [job], 0.0)
        around.ledger.settled([Guard(1, token)])
        return 0

    around.claims = [come_and_go]
    assert await around.looks_until_empty() == 2


async def test_nobody_looks_while_there_is_work() -> None:
    """Jobs that are held, outcomes that are still to be written, and a claim that is under way or left some behind."""
    around = Surroundings()
    token = around.ledger.begin_claim()
    job = ClaimedJob(1, "mail", "default", 0, "{}", 0, 0, False, token)
    around.ledger.claimed(token, [job], 0.0)
    around.idle = around.sated = False
    waiting = asyncio.create_task(around.looks_until_empty())
    for wait_for in ("the job", "its outcome", "the claim"):
        await asyncio.sleep(0.05)
        assert around.looks == 0, wait_for
        if wait_for == "the job":
            around.ledger.settled([Guard(1, token)])
        elif wait_for == "its outcome":
            around.idle = True
        else:
            around.sated = True
    assert await waiting == 1
