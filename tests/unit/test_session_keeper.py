"""The session thread's bookkeeping: what it finds, and in which order it looks. Rules 2, 19, 22 and 23."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from workers.errors import StorageUnavailableError
from workers.job import ClaimedJob
from workers.log_aside import aside
from workers.runtime import session
from workers.runtime.ledger import Ledger
from workers.runtime.session import SessionKeeper
from workers.storage.base import SUSPICION, Guard, Maintenance, MaintenanceRequest, Settled


def job(number: int, token: int) -> ClaimedJob:
    return ClaimedJob(number, "mail", "default", 0, "{}", 0, 0, False, token)


class Link:
    """A Control that answers from `stored`, and fails to come back `down` times."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.released: list[Guard] = []
        self.asked = self.recoveries = self.opened = 0
        self.stored: dict[int, list[int]] = {}
        self.arrives = False
        self.down = 0
        self.alive = True
        self.silent = self.more = self.somebody_died = False
        self.rescues = 0

    def maintain(self, request: MaintenanceRequest, *, probe: str | None) -> Maintenance:
        return Maintenance(
            alive=True,
            silent=self.silent,
            more=self.more,
            rescue=self.somebody_died,
            probed=probe is not None,
        )

    def rescue(self) -> list[Any]:
        self.rescues += 1
        return []

    def claims(self) -> dict[int, list[int]]:
        self.asked += 1
        if self.arrives:
            token = self.ledger.begin_claim()
            self.ledger.claimed(token, [job(1, token)], 0.0)
            self.stored[token] = [1]
        return self.stored

    def release(self, guards: list[Guard]) -> Settled:
        self.released += guards
        return Settled([], [guard.id for guard in guards])

    def _fail(self) -> None:
        if self.down:
            self.down -= 1
            raise StorageUnavailableError("not yet")

    def recover(self, lease: float) -> bool:
        self.recoveries += 1
        self._fail()
        return self.alive

    def open(self, name: str, lease: float, queues: Any = ()) -> int:
        self.opened += 1
        self._fail()
        return 100 + self.opened

    def abandon(self) -> None: ...

    def wait(self, seconds: float) -> None: ...


class Events:
    """Takes note of what the runner is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.in_threads = False

    def jobs_in_threads(self) -> bool:
        return self.in_threads

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.told.append(name)


class Bench:
    def __init__(self) -> None:
        self.link, self.events = Link(), Events()
        request = MaintenanceRequest(lease=1000.0, declared={}, queues=())
        self.keeper = SessionKeeper(
            cast(Any, self.link),
            self.link.ledger,
            cast(Any, self.events),
            request,
            name="x",
            stall_limit=60,
        )

    async def told(self) -> list[str]:
        """What it said, once the loop has had its turn."""
        await asyncio.sleep(0)
        return [name for name in self.events.told if name != "renewed"]


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_what_is_claimed_while_the_store_is_asked_is_no_orphan(bench: Bench) -> None:
    """Rule 2: first the store, then the ledger; the other way round running jobs would be given back."""
    bench.link.arrives = True
    bench.keeper._next_reconcile = 0.0
    bench.link.ledger.news += 1
    bench.keeper._now_and_then()
    assert (bench.link.asked, bench.link.released) == (1, [])


async def test_a_silent_session_is_looked_at_again_as_soon_as_it_may_be_dead(bench: Bench) -> None:
    """Rule 19: there is a look when suspicion is over, and before, as a wait may be cut short; otherwise one a second."""
    assert bench.keeper._tick() == 1.0
    bench.link.silent = True
    assert bench.keeper._tick() == SUSPICION / 3


async def test_jobs_that_are_due_in_masses_do_not_wait_for_the_next_second(bench: Bench) -> None:
    """Rule 8: a round stages so many at most, as the lease is not renewed meanwhile; the next one follows at once."""
    bench.link.more = True
    assert bench.keeper._tick() == 0.0
    bench.link.more = False
    assert bench.keeper._tick() == 1.0


async def test_once_a_lease_the_difference_goes_back(bench: Bench) -> None:
    """Rule 2: no oftener, as nothing was lost that is known of."""
    bench.link.stored = {99: [5]}
    bench.keeper._now_and_then()
    assert bench.link.asked == 0
    bench.keeper._next_reconcile = 0.0
    bench.keeper._now_and_then()
    assert bench.link.asked == 0, "nothing was claimed"
    bench.link.ledger.news += 1
    for _ in range(3):
        bench.keeper._now_and_then()
    assert (bench.link.asked, bench.link.released) == (1, [Guard(5, 99)])
    assert await bench.told() == ["made_way"]
    bench.link.stored = {}
    for _ in range(3):
        bench.keeper._next_reconcile = 0.0
        bench.keeper._now_and_then()
    assert bench.link.asked == 2, "once more, to see that all went back"


async def test_an_idle_runner_that_lost_a_claim_once_goes_on_asking(bench: Bench) -> None:
    """Rule 2: a statement that is held up on its way may land any time later, and nothing else would find its jobs."""
    bench.link.ledger.lost(bench.link.ledger.begin_claim(), time.monotonic() - 5000)
    for _ in range(2):
        bench.keeper._next_reconcile = 0.0
        bench.keeper._now_and_then()
    assert bench.link.asked == 2
    bench.link.stored = {1: [5]}
    bench.keeper._next_reconcile = 0.0
    bench.keeper._now_and_then()
    assert bench.link.released == [Guard(5, 1)]


async def test_what_could_not_be_given_back_is_tried_again(bench: Bench) -> None:
    """Rule 2: a deduplicated job may have to stay, for the transaction that is just enqueueing an identical one."""
    bench.link.stored = {99: [5]}
    bench.link.ledger.news += 1
    for _ in range(2):
        bench.keeper._next_reconcile = 0.0
        bench.keeper._now_and_then()
    assert bench.link.released == [Guard(5, 99)] * 2
    bench.link.stored = {}
    for _ in range(2):
        bench.keeper._next_reconcile = 0.0
        bench.keeper._now_and_then()
    assert bench.link.asked == 3


async def test_after_a_lost_claim_the_store_is_asked_each_time(bench: Bench) -> None:
    """Rule 2: it may land long after its connection is gone."""
    bench.link.ledger.lost(bench.link.ledger.begin_claim(), time.monotonic())
    for _ in range(3):
        bench.keeper._now_and_then()
    assert bench.link.asked == 3


async def test_the_loop_is_watched_while_the_link_is_down(bench: Bench) -> None:
    """Rule 23: it may be the loop that stands still."""
    bench.link.down = 3
    bench.keeper._loop_watch._beat_pending = True
    bench.keeper._loop_watch._last_beat = time.monotonic() - 70
    bench.keeper._recover()
    assert bench.events.told.count("stalled") == 2  # a warning, and the limit
    assert await bench.told() == ["stalled", "stalled", "link_restored"]


@pytest.mark.parametrize(("every", "lines"), [(0.0, 3), (60.0, 1)])
async def test_why_the_link_does_not_come_back_is_told_now_and_then(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    every: float,
    lines: int,
) -> None:
    """Rule 19: it may have been lost to a restart, and be kept away by a password that is no longer good."""
    monkeypatch.setattr(session, "_TELL_FIRST", 0.0)
    monkeypatch.setattr(session, "_TELL_EVERY", every)
    bench.link.down = 3
    bench.keeper._recover()
    aside.flush(5.0)
    assert caplog.text.count("still not back: not yet") == lines


async def test_a_replacement_that_broke_off_is_made_again(bench: Bench) -> None:
    """Rule 19: it may have left a row that is alive, but nobody was told of that session."""
    bench.link.alive = False
    bench.link.down = 0
    fail = bench.link._fail
    calls: list[int] = []

    def fails_once_in_open() -> None:
        calls.append(1)
        if len(calls) == 2:  # recover, then open
            raise StorageUnavailableError("cut off")
        fail()

    bench.link._fail = fails_once_in_open  # type: ignore[method-assign]
    bench.keeper._recover()
    assert await bench.told() == ["session_replaced"]
    assert (bench.link.recoveries, bench.link.opened) == (1, 2)


async def test_a_closed_loop_ends_the_session_when_no_thread_needs_it(bench: Bench) -> None:
    """Rule 22."""
    bench.keeper._loop_closed = bench.events.in_threads = True
    assert not bench.keeper._is_over()
    bench.events.in_threads = False
    assert bench.keeper._is_over()


async def test_how_long_the_lease_is_good_is_known_before_the_session_is(bench: Bench) -> None:
    """Guarantee 2: a process that stood still before its first renewal asks before it starts a job, like any other."""
    bench.keeper._stopping, bench.keeper._give_back = True, False
    bench.keeper.start()
    assert await asyncio.wrap_future(bench.keeper.started) == 101
    assert bench.events.told == ["renewed", "session_opened"]


@pytest.mark.parametrize("ending", [False, True])
async def test_whoever_waits_for_the_end_waits_for_no_jobs_of_others(
    bench: Bench, ending: bool
) -> None:
    """A rescue may take seconds, and so may what this runner holds without knowing: the end gives that back as well."""
    bench.link.somebody_died = True
    bench.keeper._stopping = ending
    bench.link.ledger.lost(bench.link.ledger.begin_claim(), time.monotonic())
    bench.keeper._tick()
    assert (bench.link.rescues, bench.link.asked) == ((0, 0) if ending else (1, 1))
