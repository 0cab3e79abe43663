"""Claims whose replies are lost, late or refused; and the runner that may not claim. Rules 2, 19 and 29."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import cast

import anyio
import pytest

from workers.config import QueueConfig
from workers.errors import StorageRejectedError, StorageUnavailableError
from workers.job import ClaimedJob
from workers.runtime import claimer
from workers.runtime.appetite import MOST_BYTES
from workers.runtime.claimer import START_WITHIN, Claimer
from workers.runtime.completer import Completer
from workers.runtime.demand import MIN_RUNS
from workers.runtime.gate import Gate
from workers.runtime.ledger import Ledger
from workers.runtime.work_queue import WorkQueue
from workers.storage.base import Claimed, ClaimRequest, Guard, Settled, Storage
from workers.storage.postgres.hints import MAX_PAUSE, THOROUGH_SHARE, TRAIL_BEHIND, TRAIL_EVERY
from workers.telemetry import JobSuperseded, subscribe

PATIENCE = 10


class Store:
    """Answers claims with what `answers` says; notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.limits: list[int] = []
        self.scans: list[int] = []
        self.crashes = 0
        self.payload = "{}"
        self.answers: list[Sequence[int] | Exception] = []
        self.complete = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.news = asyncio.Condition()

    async def note(self, what: str, session: int, token: int) -> None:
        self.asked.append((what, session, token))
        async with self.news:
            self.news.notify_all()

    async def claim(self, request: ClaimRequest) -> Claimed:
        self.limits.append(request.limit)
        self.scans.append(request.scan.suspects)
        await self.note("claim", request.session, request.token)
        await self.gate.wait()
        answer = self.answers.pop(0) if self.answers else ()
        if isinstance(answer, Exception):
            raise answer
        token = request.token
        more = (self.payload, 0, self.crashes, False, token)
        jobs = [ClaimedJob(i, "mail", "default", 0, *more) for i in answer]
        return Claimed(jobs, complete=self.complete)

    async def release_claim(self, session: int, token: int) -> Settled:
        await self.note("release", session, token)
        return Settled([5], [6])


class Bench:
    """A claimer with three idle workers."""

    def __init__(self, fragile: Collection[str] = ()) -> None:
        self.store, self.gate, self.ledger = Store(), Gate(), Ledger()
        self.ledger.begin_session(1)
        self.gate.open()
        self.queue = WorkQueue("default", QueueConfig(num_workers=3, poll_interval=60))
        storage = cast(Storage, self.store)
        completer = Completer(storage, self.ledger)
        types = ("mail",)
        self.claimer = Claimer(
            storage, self.queue, self.ledger, completer, self.gate, types, 500, fragile=fragile
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.queue.active = 3
        workers = [asyncio.create_task(self.queue.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        task = asyncio.create_task(self.claimer.run())
        try:
            yield
        finally:
            for each in (task, *workers):
                each.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(task, *workers)

    async def asked(self, count: int) -> list[tuple[str, int, int]]:
        """What the store was asked, once it was asked `count` times."""
        async with asyncio.timeout(PATIENCE), self.store.news:
            await self.store.news.wait_for(lambda: len(self.store.asked) >= count)
        return self.store.asked[:count]


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_a_session_that_is_not_alive_finds_no_queue_empty(bench: Bench) -> None:
    """A process that stood still may have lost it since it looked last."""
    assert await bench.claimer.claim(1, thorough=True) == 0
    bench.store.complete = False
    assert await bench.claimer.claim(1, thorough=True) == -1


async def test_a_claim_whose_reply_was_lost_is_given_back_before_the_next(bench: Bench) -> None:
    """Rule 2: under its own token and session; and it is on its way, no orphan, until then."""
    bench.store.answers = [StorageUnavailableError("connection lost"), [7]]
    async with bench.running():
        await bench.asked(1)
        assert bench.ledger.orphans({1: [5]}) == []
        assert await bench.asked(3) == [("claim", 1, 1), ("release", 1, 1), ("claim", 1, 2)]
        assert bench.ledger.orphans({1: [5]}) == [Guard(5, 1)], (
            "what lands late is found by the session"
        )


async def test_a_claim_that_was_refused_is_tried_again(bench: Bench) -> None:
    """Nothing stands under its token; the runner goes on trying, slower, and for less: maybe it was too much."""
    bench.store.answers = [StorageRejectedError("no such table")] * 3
    async with bench.running():
        assert await bench.asked(4) == [("claim", 1, token) for token in (1, 2, 3, 4)]
        assert bench.store.limits == [3, 1, 1, 1]


async def test_nothing_is_claimed_while_the_session_has_no_link(bench: Bench) -> None:
    """Rule 19: a closed gate holds claims back, also one that was about to be made."""
    bench.gate.close()
    async with bench.running():
        assert await bench.claimer.claim(1) == -1
        assert bench.store.asked == []
        bench.gate.open()
        assert await bench.asked(1) == [("claim", 1, 1)]


async def test_what_was_claimed_by_a_session_that_is_gone_is_not_run(bench: Bench) -> None:
    """The reply came after the session was taken for dead: its jobs are given back by others, and belong to them."""
    bench.store.gate.clear()
    bench.store.answers = [[1, 2]]
    async with bench.running():
        await bench.asked(1)
        bench.ledger.begin_session(2)
        bench.store.gate.set()
        bench.claimer.wake()
        assert await bench.asked(2) == [("claim", 1, 1), ("claim", 2, 2)]
        assert (len(bench.queue), len(bench.ledger)) == (0, 0)


async def test_a_wake_up_during_a_claim_counts_for_the_next(bench: Bench) -> None:
    """What was committed after the claim's snapshot is not left until the next poll."""
    bench.store.gate.clear()
    async with bench.running():
        await bench.asked(1)
        bench.claimer.wake()
        bench.store.gate.set()
        assert len(await bench.asked(2)) == 2


async def test_claim_and_hand_over_are_one(bench: Bench) -> None:
    """Rule 29: a claim loop that is cancelled while the statement is on its way still takes over what it claimed."""

    bench.store.gate.clear()
    bench.store.answers = [[1, 2, 3]]
    bench.queue.active = 3
    workers = [asyncio.create_task(bench.queue.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.claimer.run)
        await bench.asked(1)
        group.cancel_scope.cancel()
        asyncio.get_running_loop().call_later(0.01, bench.store.gate.set)
    assert [job.id for job in bench.queue.take_back()] == [1, 2, 3]
    bench.queue.close()
    await asyncio.gather(*workers)


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_claim_that_does_not_come_back_is_broken_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    """At the end, and again where the server does not answer that it was; nothing is claimed any more."""
    monkeypatch.setattr(claimer, "_LAST_SECONDS", 0.01)
    cancelled: list[int] = []

    async def wait(request: ClaimRequest) -> Claimed:
        await bench.store.note("claim", request.session, request.token)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(request.token)
            if deaf:  # the driver, which has told it
                await asyncio.Event().wait()
        return Claimed([], complete=False)

    monkeypatch.setattr(bench.store, "claim", wait)
    async with asyncio.timeout(PATIENCE), anyio.create_task_group() as group:
        group.start_soon(bench.claimer.claim, 1)
        await bench.asked(1)
        bench.claimer.close()
        bench.claimer.close()
        group.cancel_scope.cancel()
    assert cancelled == [1]
    assert await bench.claimer.claim(1) == -1
    assert bench.store.asked == [("claim", 1, 1)]
    assert bench.ledger.orphans({1: [5]}) == [Guard(5, 1)], (
        "what lands late is found by the session"
    )
    assert bench.ledger.lost_at > float("-inf"), "which looks for it"


@pytest.mark.parametrize("late", [False, True])
async def test_a_claim_whose_reply_was_lost_is_left_to_the_session_at_the_end(
    bench: Bench, late: bool
) -> None:
    """Jobs that would not end may keep the session alive: nobody else would give back what was claimed."""
    bench.store.answers = [StorageUnavailableError("connection lost")]
    bench.store.gate.clear()
    claiming = asyncio.create_task(bench.claimer.claim(1))
    await bench.asked(1)
    if late:
        bench.claimer.close()
    bench.store.gate.set()
    assert await claiming == -1
    bench.claimer.close()
    assert bench.ledger.orphans({1: [5]}) == [Guard(5, 1)]


async def test_a_suspect_that_ends_while_others_are_asked_for(bench: Bench) -> None:
    """Rule 20: what could not be had beside it is asked for again at once; otherwise when it has ended."""
    bench.claimer.found_suspects()
    bench.gate.exclusive = True
    assert await bench.claimer.claim_suspects(3) == 0
    assert (bench.store.limits, bench.claimer.suspects) == ([3], False)
    bench.gate.free()
    assert (bench.gate.exclusive, bench.claimer.suspects) == (False, True)
    bench.gate.exclusive = True
    bench.store.gate.clear()
    asking = asyncio.create_task(bench.claimer.claim_suspects(3))
    await bench.asked(2)
    bench.gate.free()
    bench.store.gate.set()
    assert await asking == 0
    assert bench.store.limits == [3, 3, 1]
    assert (bench.gate.exclusive, bench.claimer.suspects) == (False, False)


async def test_a_suspect_that_is_asked_for_in_two_queues_at_once(bench: Bench) -> None:
    """Rule 20: the second one waits until it is known what the first one has got."""
    bench.claimer.found_suspects()
    bench.store.gate.clear()
    asking = asyncio.create_task(bench.claimer.claim_suspects(3))
    await bench.asked(1)
    bench.gate.exclusive = True  # the other queue's question is on its way
    bench.store.gate.set()
    assert await asking == 0
    assert (bench.store.limits, bench.claimer.suspects) == ([3], False)
    bench.gate.free()
    assert bench.claimer.suspects


async def test_a_release_that_fails_is_repeated_before_the_next_claim(bench: Bench) -> None:
    """Rule 2: forgotten, its jobs would be stuck for as long as the session lives."""
    bench.store.answers = [StorageUnavailableError("connection lost")]
    release = bench.store.release_claim
    failed: list[int] = []

    async def fails_once(session: int, token: int) -> Settled:
        released = await release(session, token)
        if not failed:
            failed.append(token)
            raise StorageUnavailableError("still")
        return released

    bench.store.release_claim = fails_once  # type: ignore[method-assign]
    async with bench.running():
        asked = await bench.asked(4)
    assert asked == [("claim", 1, 1), ("release", 1, 1), ("release", 1, 1), ("claim", 1, 2)]


async def test_a_part_of_a_lost_claim_that_has_to_wait_holds_up_nothing(bench: Bench) -> None:
    """Rules 2 and 26: the session's thread finds it, as nobody here knows of it."""
    bench.store.answers = [StorageUnavailableError("connection lost")]
    release = bench.store.release_claim

    async def in_part(session: int, token: int) -> Settled:
        await release(session, token)
        return Settled([5], [6], [4])

    bench.store.release_claim = in_part  # type: ignore[method-assign]
    told: list[JobSuperseded] = []
    with subscribe(told.append, JobSuperseded):
        async with bench.running():
            asked = await bench.asked(3)
    assert asked == [("claim", 1, 1), ("release", 1, 1), ("claim", 1, 2)]
    assert [(event.session, event.job_id) for event in told] == [(1, 6)]


async def test_a_suspect_is_alone_until_its_end_is_written(bench: Bench) -> None:
    """Rule 20: one that kills the process in between would have it counted again, though it has done no harm."""
    bench.store.crashes = 2
    bench.store.answers = [[], [7]]
    bench.claimer.found_suspects()
    assert await bench.claimer.claim_suspects(3) == 1
    assert bench.store.scans == [1, 32767]
    (job,) = bench.queue.take_back()
    bench.claimer.give_back([job])  # as one that was never started; any other end is written alike
    assert bench.gate.exclusive
    bench.ledger.settled([Guard(7, job.token)])
    assert not bench.gate.exclusive


async def test_of_fragile_types_each_suspect_is_alone() -> None:
    """Rule 20: where two crashes bury a job, it may not be beside another one that may kill the process."""
    bench = Bench(fragile={"mail"})
    bench.store.crashes = 1
    bench.store.answers = [[7]]
    assert await bench.claimer.claim_suspects(3) == 1
    assert (bench.store.scans, bench.store.limits) == ([32767], [1])
    assert bench.gate.exclusive
    bench.ledger.settled([Guard(7, 1)])
    assert not bench.gate.exclusive


async def test_a_claim_of_suspects_that_fails_is_not_repeated_as_it_was(bench: Bench) -> None:
    """Rule 12: or one that is too much would be asked for until the end of time."""
    bench.store.answers = [StorageRejectedError("too much")] * 3
    bench.claimer.suspects = True
    async with bench.running():
        await bench.asked(4)
        assert bench.store.limits[:4] == [3, 1, 1, 1]


async def test_suspects_with_large_payloads_come_one_by_one(bench: Bench) -> None:
    bench.store.payload = "x" * MOST_BYTES
    bench.store.answers = [[1]]
    assert await bench.claimer.claim(3) == 1
    bench.queue.take_back()
    bench.claimer.suspects = True
    async with bench.running():
        await bench.asked(2)
        assert bench.store.limits[1] == 1


async def test_a_claim_that_brings_nothing_says_nothing_of_how_much_comes_through(
    bench: Bench,
) -> None:
    bench.store.answers = [StorageRejectedError("too much"), []]
    async with bench.running():
        await bench.asked(2)
        bench.claimer.wake()
        await bench.asked(3)
        assert bench.store.limits == [3, 1, 1]


async def test_a_claim_is_on_its_way_while_the_jobs_of_a_full_one_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose jobs never wait would keep it from being sent for as long as they take."""
    bench.queue.demand.prefetch = 1000
    bench.store.answers = [range(500)]
    order: list[str] = []
    claim, put = bench.store.claim, bench.queue.put

    async def look(request: ClaimRequest) -> Claimed:
        order.append("claim")
        return await claim(request)

    def handed_over(jobs: Sequence[ClaimedJob]) -> None:
        put(jobs)
        asyncio.get_running_loop().call_soon(order.append, "a worker's turn")

    monkeypatch.setattr(bench.store, "claim", look)
    monkeypatch.setattr(bench.queue, "put", handed_over)
    async with bench.running():
        await bench.asked(2)
    assert order[:2] == ["claim", "claim"]
    assert bench.store.limits == [500, 500]


async def test_nothing_is_claimed_in_advance_beside_a_job_that_must_be_alone(bench: Bench) -> None:
    """Rule 20: what is claimed when it kills the process would be suspect with it."""
    bench.gate.exclusive = True
    bench.queue.demand.prefetch = 100
    async with bench.running():
        await bench.asked(1)
        assert bench.store.limits == [3]


@pytest.mark.parametrize(("crashes", "prefetch"), [(0, 0), (1, 100)])
async def test_jobs_that_were_not_started_in_time_end_the_claiming_in_advance(
    bench: Bench, crashes: int, prefetch: int
) -> None:
    """Rule 12: until run times are known anew. But suspects say nothing of that: they were not claimed in advance."""
    bench.queue.demand.prefetch = 100
    token = bench.ledger.begin_claim()
    jobs = [ClaimedJob(1, "mail", "default", 0, "{}", 0, crashes, False, token)]
    bench.ledger.claimed(token, jobs, 100.0)
    bench.queue.put(jobs)
    bench.claimer._give_back_overslept(100.0 + START_WITHIN - 0.01)
    assert (len(bench.queue), bench.queue.demand.prefetch) == (1, 100)
    bench.claimer._give_back_overslept(100.0 + START_WITHIN)
    assert (len(bench.queue), bench.queue.demand.prefetch) == (0, prefetch)


def test_the_documented_figures() -> None:
    """Rules 11 and 12, as docs/protocol.md has them."""
    assert START_WITHIN == 1.0
    assert MIN_RUNS == 20
    assert (TRAIL_EVERY, TRAIL_BEHIND, THOROUGH_SHARE, MAX_PAUSE) == (1.0, 3.0, 50, 30.0)
