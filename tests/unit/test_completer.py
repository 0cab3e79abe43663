"""How outcomes are written: in batches, guarded, repeated, and split until the bad one is alone. Rules 14 and 26."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from workers import telemetry
from workers.errors import StorageRejectedError, StorageUnavailableError, StorageUnusableError
from workers.job import ClaimedJob
from workers.lifecycle import Bury, Release, Retry, Wait
from workers.runtime import stream
from workers.runtime.completer import Completer
from workers.runtime.ledger import Ledger
from workers.storage.base import Guard, Settled, Settlement, Storage

PATIENCE = 10


class Store:
    """Notes what it is asked to write. `trouble` is raised instead, as often as it says."""

    def __init__(self) -> None:
        self.completed: list[list[int]] = []
        self.settled: list[list[Settlement]] = []
        self.forgotten: list[tuple[int, int]] = []
        self.trouble: list[Exception] = []
        self.bad: set[int] = set()
        self.gone: set[int] = set()
        self.superseded: set[int] = set()
        self.blocked: set[int] = set()
        self.tried, self.troubled = asyncio.Event(), asyncio.Event()
        self.tries: Counter[int] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()

    async def _write(self, session: int, ids: list[int], closed: Collection[int]) -> list[int]:
        closed = [*closed]
        await self.gate.wait()
        if self.trouble:
            self.troubled.set()
            raise self.trouble.pop(0)
        if self.bad & set(ids):
            raise StorageRejectedError("bad data")
        self.forgotten += [(session, token) for token in closed]
        return [job_id for job_id in ids if job_id not in self.gone]

    async def complete(
        self, session: int, guards: Sequence[Guard], closed: Collection[int]
    ) -> Settled:
        blocked = self.blocked & {guard.id for guard in guards}
        free = [guard.id for guard in guards if guard.id not in blocked]
        written = await self._write(session, free, () if blocked else closed)
        self.completed.append(free)
        self.tried.set()
        return Settled(written, (), blocked)

    async def settle(
        self, session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        bad, self.bad = (
            self.bad,
            self.bad - {item.guard.id for item in settlements if isinstance(item.transition, Bury)},
        )
        self.tries.update(item.guard.id for item in settlements)
        blocked = self.blocked & {item.guard.id for item in settlements}
        settlements = [item for item in settlements if item.guard.id not in blocked]
        try:
            written = await self._write(
                session, [item.guard.id for item in settlements], () if blocked else closed
            )
        finally:
            self.bad = bad
        self.settled.append(list(settlements))
        self.tried.set()
        return Settled(
            [i for i in written if i not in self.superseded],
            self.superseded & set(written),
            blocked,
        )


class Bench:
    """A completer on a Store, and jobs that were claimed."""

    def __init__(self) -> None:
        self.store = Store()
        self.ledger = Ledger()
        self.ledger.begin_session(1)
        self.completer = Completer(cast(Storage, self.store), self.ledger)

    def claim(self, *ids: int, deduplicated: bool = False) -> list[ClaimedJob]:
        token = self.ledger.begin_claim()
        jobs = [
            ClaimedJob(job_id, "mail", "default", 0, "{}", 0, 0, deduplicated, token)
            for job_id in ids
        ]
        self.ledger.claimed(token, jobs, 0.0)
        return jobs

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.completer.run())
        yield
        self.completer.close()
        async with asyncio.timeout(PATIENCE):
            await task


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_what_ends_while_a_statement_is_on_its_way_is_the_next_batch(bench: Bench) -> None:
    """No timer: the first is written at once, then all that gathered."""
    jobs = bench.claim(*range(10))
    bench.store.gate.clear()
    async with bench.running():
        bench.completer.completed(jobs[0])
        for _ in range(3):
            await asyncio.sleep(0)
        for job in jobs[1:]:
            bench.completer.completed(job)
        assert bench.store.completed == []
        bench.store.gate.set()
    assert bench.store.completed == [[0], list(range(1, 10))]
    assert bench.completer.idle
    assert not bench.ledger
    assert bench.store.forgotten == [(1, 1)]


async def test_what_ends_right_after_a_write_is_gathered_for_a_moment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 14: each write costs the loop as much as many jobs. A worthwhile batch does not wait, nor does the end."""
    monkeypatch.setattr(stream, "PACE", 3600.0)
    monkeypatch.setattr(stream, "WORTH", 3)
    jobs = bench.claim(*range(7))
    task = asyncio.create_task(bench.completer.run())
    for group in (jobs[:1], jobs[1:4], jobs[4:5], jobs[5:]):
        for job in group:
            bench.completer.completed(job)
        for _ in range(10):
            await asyncio.sleep(0)
    assert bench.store.completed == [[0], [1, 2, 3]]
    task.cancel()
    await asyncio.wait([task])
    bench.completer.close()
    async with asyncio.timeout(PATIENCE):
        await bench.completer.run()
    assert bench.store.completed == [[0], [1, 2, 3], [4, 5, 6]]
    assert not bench.ledger


async def test_the_two_streams_do_not_wait_for_each_other(bench: Bench) -> None:
    """A give-back that meets a lock does not hold up completions."""
    jobs = bench.claim(1, 2)
    begun, completed = asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Settled:
        begun.set()
        await completed.wait()
        return Settled([1])

    async def quick(*args: Any) -> Settled:
        completed.set()
        return Settled([2])

    store: Any = bench.store
    store.settle, store.complete = slow, quick
    async with bench.running():
        bench.completer.ended(jobs[0], Release())
        await begun.wait()
        bench.completer.completed(jobs[1])
        async with asyncio.timeout(PATIENCE):
            await completed.wait()
    assert not bench.ledger


async def test_a_write_with_unknown_outcome_is_repeated_and_not_fenced(bench: Bench) -> None:
    """It may have gone through the first time: then the row is gone, and that is no news."""
    fenced: list[telemetry.JobFenced] = []
    jobs = bench.claim(1, 2)
    bench.store.trouble = [StorageUnavailableError("gone")] * 2
    bench.store.gone = {1, 2}
    with telemetry.subscribe(fenced.append, telemetry.JobFenced):
        async with bench.running():
            for job in jobs:
                bench.completer.completed(job)
    assert bench.store.completed == [[1, 2]]
    assert (bench.completer.fenced, fenced) == (0, [])
    assert not bench.ledger


async def test_a_write_that_finds_nothing_is_fenced(bench: Bench) -> None:
    """Guarantee 2: it is counted and told."""
    fenced: list[telemetry.JobFenced] = []
    jobs = bench.claim(1, 2)
    bench.store.gone = {2}
    with telemetry.subscribe(fenced.append, telemetry.JobFenced):
        async with bench.running():
            for job in jobs:
                bench.completer.completed(job)
    assert bench.completer.fenced == 1
    assert [event.job_id for event in fenced] == [2]


async def test_a_superseded_job_is_told_and_not_fenced(bench: Bench) -> None:
    """Rule 26."""
    (job,) = bench.claim(1)
    bench.store.superseded = {1}
    async with bench.running():
        bench.completer.ended(job, Release())
    assert (bench.completer.superseded, bench.completer.fenced) == (1, 0)
    assert not bench.ledger


async def test_one_that_has_to_wait_holds_up_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Rules 14 and 26: neither others of its batch nor what ends later; its claim stands until it is written."""
    jobs = bench.claim(1, 2, 3, deduplicated=True)
    (other,) = bench.claim(4)
    bench.store.blocked = {1, 2}
    async with bench.running():
        for job in jobs[:2]:
            bench.completer.ended(job, Retry(1.0, "no"))
        await bench.store.tried.wait()
        bench.completer.ended(jobs[2], Release())
        bench.completer.ended(other, Retry(1.0, "no"))
        async with asyncio.timeout(PATIENCE):
            while len(written := {i.guard.id for group in bench.store.settled for i in group}) < 2:
                bench.store.tried.clear()
                await bench.store.tried.wait()
        assert written == {3, 4}
        assert bench.store.forgotten == [(1, 2)]
        assert len(bench.ledger) == 2
        bench.store.blocked = set()
        bench.store.superseded = {2}
    assert bench.completer.idle
    assert not bench.ledger
    assert bench.store.forgotten[1:] == [(1, 1)]
    assert (bench.completer.superseded, bench.completer.fenced) == (1, 0)
    assert caplog.text.count("jobs go back when the transactions are over") == 1


async def test_a_locked_row_holds_up_no_completion(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 14: it is tried again by itself. Whether it may have been written already stays known: then it is not fenced."""
    jobs = bench.claim(1, 2, 3)
    bench.store.trouble = [StorageUnavailableError("gone")]
    bench.store.blocked = {1}
    async with bench.running():
        bench.completer.completed(jobs[0])
        bench.completer.completed(jobs[1])
        async with asyncio.timeout(PATIENCE):
            await bench.store.tried.wait()
        bench.completer.completed(jobs[2])
        bench.store.blocked = set()
        bench.store.gone = {1}
    assert bench.store.completed == [[2], [3], [1]]
    assert (bench.completer.fenced, bench.store.forgotten) == (0, [(1, 1)])
    assert not bench.ledger
    assert caplog.text.count("wait for whoever has locked their rows") == 1


async def test_what_has_to_wait_is_tried_again_though_others_keep_coming(bench: Bench) -> None:
    """Those that have to wait as well do not put it off."""
    jobs = bench.claim(*range(10_000), deduplicated=True)
    bench.store.blocked = set(range(10_000))
    async with bench.running():
        async with asyncio.timeout(PATIENCE):
            while bench.store.tries[jobs[0].id] < 3:
                bench.store.tried.clear()
                bench.completer.ended(jobs[len(bench.store.tries)], Release())
                await bench.store.tried.wait()
        assert len(bench.store.tries) > 3
        bench.store.blocked = set()


async def test_what_has_to_wait_is_tried_again_though_there_is_always_more(bench: Bench) -> None:
    """The next batch is there each time that one is written."""
    jobs = bench.claim(*range(100_000), deduplicated=True)
    bench.store.blocked = {0}
    settle = bench.store.settle
    ended = iter(jobs)

    async def and_more(
        session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        if bench.store.tries[0] < 2 and (job := next(ended, None)):
            bench.completer.ended(job, Release())
        await asyncio.sleep(0)
        return await settle(session, settlements, closed)

    bench.store.settle = and_more  # type: ignore[method-assign]
    bench.completer.ended(next(ended), Release())
    async with bench.running():
        async with asyncio.timeout(PATIENCE):
            while bench.store.tries[0] < 2:
                bench.store.tried.clear()
                await bench.store.tried.wait()
        bench.store.blocked = set()
    assert len(bench.store.tries) < len(jobs), "it was tried when there was no more"


async def test_a_batch_is_split_until_the_bad_one_is_alone(bench: Bench) -> None:
    """The others land; the bad one is buried with the words of the store."""
    jobs = bench.claim(*range(100))
    bench.store.bad = {37, 38}
    async with bench.running():
        for job in jobs:
            bench.completer.ended(job, Retry(1.0, "no"))
    retried = [
        item.guard.id
        for batch in bench.store.settled
        for item in batch
        if isinstance(item.transition, Retry)
    ]
    buried = {
        item.guard.id: item.transition.reason
        for batch in bench.store.settled
        for item in batch
        if isinstance(item.transition, Bury)
    }
    assert sorted(retried) == [number for number in range(100) if number not in (37, 38)]
    assert buried.keys() == {37, 38}
    assert "bad data" in buried[37]
    assert not bench.ledger


async def test_claims_that_end_while_others_are_forgotten_are_forgotten_next(bench: Bench) -> None:
    """Each by itself, as with transactional jobs: a token that gets lost leaves its row behind."""
    jobs = [bench.claim(number)[0] for number in (1, 2, 3, 4)]
    bench.store.gate.clear()
    async with bench.running():
        bench.completer.dropped(jobs[0])
        for _ in range(3):
            await asyncio.sleep(0)
        bench.completer.dropped(jobs[1])
        bench.completer.dropped(jobs[2])
        bench.store.gate.set()
        bench.completer.dropped(jobs[3])
    assert sorted(token for _, token in bench.store.forgotten) == [1, 2, 3, 4]


async def test_what_its_own_transaction_removed_is_forgotten(bench: Bench) -> None:
    """Nothing is written for it but the end of its claim."""
    first, second = bench.claim(1, 2)
    async with bench.running():
        bench.completer.dropped(first)
        assert bench.store.forgotten == []
        bench.completer.dropped(second)
    assert bench.store.forgotten == [(1, 1)]
    assert not bench.ledger


async def test_a_refusal_where_there_is_nothing_but_claims_to_forget_is_survived(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 14: no job is to blame; they are forgotten with the next write."""
    first, second = bench.claim(1), bench.claim(2)
    bench.store.trouble = [StorageRejectedError("not now")]
    async with bench.running():
        bench.completer.dropped(first[0])
        async with asyncio.timeout(PATIENCE):
            await bench.store.troubled.wait()
        bench.completer.completed(second[0])
    assert "claims that are over can't be forgotten yet: not now" in caplog.text
    assert sorted(bench.store.forgotten) == [(1, 1), (1, 2)]


async def test_a_burial_that_has_to_wait_is_written_without_another_outcome(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the other stream, which sleeps."""
    (job,) = bench.claim(1)

    async def refused_and_locked(*given: Any) -> Settled:
        bench.store.blocked = {1}
        raise StorageRejectedError("bad data")

    monkeypatch.setattr(bench.store, "complete", refused_and_locked)
    async with bench.running():
        for _ in range(5):  # until all streams sleep
            await asyncio.sleep(0)
        bench.completer.completed(job)
        async with asyncio.timeout(PATIENCE):
            await bench.store.tried.wait()
            bench.store.blocked = set()
            while not bench.completer.idle:
                bench.store.tried.clear()
                await bench.store.tried.wait()
                await asyncio.sleep(0)
    assert isinstance(bench.store.settled[-1][0].transition, Bury)


async def test_the_claims_of_a_dead_session_are_not_forgotten(bench: Bench) -> None:
    """Rule 4: others find its jobs by them. A completion that is on its way is still written under the old session."""
    done, dropped = bench.claim(1, 2)
    bench.ledger.begin_session(2)
    (new,) = bench.claim(3)
    async with bench.running():
        bench.completer.dropped(dropped)
        bench.completer.completed(done)
        bench.completer.completed(new)
    assert sorted(map(sorted, bench.store.completed)) == [[1], [3]]
    assert bench.store.forgotten == [(2, 2)]


async def test_it_goes_on_where_it_was_cancelled(bench: Bench) -> None:
    """A loop that closes cancels every task; started again, the writer writes what it had begun with."""
    jobs = bench.claim(1, 2, 3)
    bench.store.gate.clear()
    before = asyncio.all_tasks()
    task = asyncio.create_task(bench.completer.run())
    for job in jobs:
        bench.completer.completed(job)
    for _ in range(3):
        await asyncio.sleep(0)
    for each in asyncio.all_tasks() - before:
        each.cancel()
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([task])
    assert task.cancelled()
    bench.store.gate.set()
    async with bench.running():
        pass
    assert bench.store.completed == [[1, 2, 3]]
    assert bench.completer.idle
    assert not bench.ledger


async def test_the_last_two_jobs_of_a_claim_in_both_streams(bench: Bench) -> None:
    """Neither write knows that it is the last: the claim is forgotten afterwards."""
    done, retried = bench.claim(1, 2)
    bench.store.gate.clear()
    async with bench.running():
        bench.completer.completed(done)
        bench.completer.ended(retried, Retry(1.0, "no"))
        for _ in range(3):
            await asyncio.sleep(0)
        bench.store.gate.set()
        async with asyncio.timeout(PATIENCE):
            while not bench.store.forgotten:  # noqa: ASYNC110 - a store of its own
                await asyncio.sleep(0)
    assert bench.store.forgotten == [(1, 1)]
    assert not bench.ledger


async def test_a_write_that_was_cancelled_may_have_gone_through(bench: Bench) -> None:
    """Rule 14: started again, what it does not find is done already."""
    (job,) = bench.claim(1)
    bench.store.gate.clear()
    stream = bench.completer._done
    task = asyncio.create_task(stream.run())
    bench.completer.completed(job)

    async def interrupted(*args: Any) -> list[int]:
        bench.store.gone = {1}
        raise asyncio.CancelledError

    store: Any = bench.store
    complete, store.complete = store.complete, interrupted
    await asyncio.wait([task])
    assert task.cancelled()
    store.complete = complete
    bench.store.gate.set()
    async with bench.running():
        pass
    assert bench.completer.fenced == 0
    assert bench.completer.idle


async def test_a_refused_batch_may_have_been_written_in_part(bench: Bench) -> None:
    """Rule 14: of several kinds, those before the refused one are; their second write finds nothing."""
    jobs = bench.claim(1, 2)
    settle = bench.store.settle

    async def in_part(
        session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        if len(settlements) == 2:
            bench.store.gone = {1}
            raise StorageRejectedError("bad data")
        return await settle(session, settlements, closed)

    bench.store.settle = in_part  # type: ignore[method-assign]
    async with bench.running():
        for job in jobs:
            bench.completer.ended(job, Release())
    assert bench.completer.fenced == 0
    assert not bench.ledger


async def test_what_the_store_lacks_is_told_of_once(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 14: as often as it is tried, and whatever else can be written meanwhile."""
    monkeypatch.setattr(stream, "_ASIDE_LEAST", 0.0)
    monkeypatch.setattr(stream, "RETRY_MOST", 0.0)
    lacking, *others = bench.claim(*range(1, 9))
    settle, tries = bench.store.settle, 0

    async def lacks(
        session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        nonlocal tries
        if lacking.id in {item.guard.id for item in settlements} and tries < 20:
            tries += 1
            raise StorageUnusableError("no such table")
        return await settle(session, settlements, closed)

    bench.store.settle = lacks  # type: ignore[method-assign]
    async with bench.running():
        bench.completer.ended(lacking, Release())
        for job in others:
            bench.completer.ended(job, Release())
            await asyncio.sleep(0)
    assert tries == 20
    assert not bench.ledger
    assert caplog.text.count("until somebody mends this: no such table") == 1


async def test_what_can_not_even_be_buried_waits(bench: Bench) -> None:
    """So that it is nobody's: a runner that shuts down when the queue is empty would never end."""
    (job,) = bench.claim(1)
    settle = bench.store.settle

    async def refuse_all_but_waiting(
        session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        if not isinstance(settlements[0].transition, Wait):
            raise StorageRejectedError("nothing at all")
        return await settle(session, settlements, closed)

    bench.store.settle = refuse_all_but_waiting  # type: ignore[method-assign]
    async with bench.running():
        bench.completer.ended(job, Retry(1.0, "no"))
    assert not bench.ledger
    assert bench.store.forgotten == [(1, 1)]


@pytest.mark.parametrize("settles", [False, True])
async def test_a_statement_that_is_on_its_way_is_not_cancelled(bench: Bench, settles: bool) -> None:
    """Rule 29: psycopg would close its connection."""
    (job,) = bench.claim(1)
    bench.store.gate.clear()
    task = asyncio.create_task(bench.completer.run())
    bench.completer.ended(job, Release()) if settles else bench.completer.completed(job)
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    bench.store.gate.set()
    await asyncio.wait([task])
    assert len(bench.store.completed) + len(bench.store.settled) == 1
    assert not bench.ledger


async def test_a_superseded_job_is_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 26: a job that is nowhere any more can be explained."""
    with caplog.at_level(logging.INFO, "workers"):
        bench.completer.made_way(1, [7])
    assert "job 7 made way for an identical one that waits" in caplog.text
