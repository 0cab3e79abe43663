"""What the runner does about what its session thread reports. Rules 19 and 20."""

from __future__ import annotations

import asyncio
import bdb
import logging
import sys
import traceback
from types import FrameType
from typing import Any, cast

import pytest

from workers import BackgroundJob
from workers.config import QueueConfig
from workers.errors import StorageRejectedError, StorageUnavailableError
from workers.job import ClaimedJob
from workers.job_type import describe
from workers.runtime import reports as reports_module
from workers.runtime.attempt import Attempt, Fenced
from workers.runtime.claimer import Claimer
from workers.runtime.completer import Completer
from workers.runtime.gate import Gate
from workers.runtime.ledger import Ledger
from workers.runtime.reports import Reports
from workers.runtime.work_queue import WorkQueue
from workers.storage.base import DeadSession, Maintenance, Storage, Wake
from workers.telemetry import JobSuperseded, SessionLost, subscribe


class Mail(BackgroundJob[Any]):
    async def run(self, ctx: Any) -> None: ...


class Bench:
    """A runner's hands, without a store."""

    def __init__(self) -> None:
        self.ledger, self.gate = Ledger(), Gate()
        self.ledger.begin_session(1)
        self.completer = Completer(cast(Storage, None), self.ledger)
        self.queue = WorkQueue("default", QueueConfig())
        self.died: list[BaseException] = []
        self.ended: list[str] = []
        self.storage, self.claimer = Noticing(), Looking()
        self.reports = Reports(
            cast(Storage, self.storage),
            self.ledger,
            self.completer,
            self.gate,
            {"default": self.queue},
            {"default": cast(Claimer, self.claimer)},
            set(),
            self.died.append,
            lambda seconds, stack: self.ended.append(stack),
        )

    def claim(self, *ids: int) -> list[ClaimedJob]:
        token = self.ledger.begin_claim()
        jobs = [ClaimedJob(n, "mail", "default", 0, "{}", 0, 0, False, token) for n in ids]
        self.ledger.claimed(token, jobs, 0.0)
        return jobs


class Noticing:
    """A storage that keeps hints."""

    def __init__(self) -> None:
        self.wakes: list[Wake] = []

    def noticed(self, wake: Wake) -> None:
        self.wakes.append(wake)


class Looking:
    """A claimer."""

    def __init__(self) -> None:
        self.suspects = False
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_nothing_is_claimed_while_the_link_is_lost(bench: Bench) -> None:
    """Rule 19: until the session is known to be what it was."""
    bench.gate.open()
    bench.reports.link_lost(StorageUnavailableError("the connection ended"))
    assert not bench.gate.is_open()
    bench.reports.link_restored()
    assert bench.gate.is_open()


async def test_housekeeping_that_is_refused_is_no_lost_connection(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.reports.link_lost(StorageRejectedError("a right was revoked"))
    assert "the session's housekeeping is refused" in caplog.text


async def test_claims_begin_with_the_session(bench: Bench) -> None:
    bench.reports.session_opened(7)
    assert bench.ledger.session == 7
    assert bench.gate.is_open()


async def test_a_log_that_fails_costs_nothing_but_a_line(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A filter that raises: what had to be done is done."""
    caplog.set_level(logging.INFO, "workers")

    def fail(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    logger = logging.getLogger("workers")
    logger.addFilter(fail)
    try:
        with pytest.raises(ZeroDivisionError):
            bench.reports.session_replaced(2)
        assert (bench.ledger.session, bench.gate.is_open()) == (2, True)
        bench.gate.close()
        with pytest.raises(ZeroDivisionError):
            bench.reports.link_restored()
        assert bench.gate.is_open()
    finally:
        logger.removeFilter(fail)


async def test_a_job_that_is_somebody_elses_is_asked_until_it_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 19: it swallowed the first cancellation, as a loop around asyncio.wait_for may."""
    monkeypatch.setattr(reports_module, "ASK_AGAIN", 0.001)
    asked = 0

    async def swallow_two() -> None:
        nonlocal asked
        while asked < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asked += 1

    task = asyncio.create_task(swallow_two())
    await asyncio.sleep(0)
    (job,) = bench.claim(1)
    bench.queue.running.add(Attempt(job, describe(Mail), task, 1, 0.0, True))
    bench.reports.session_replaced(2)
    async with asyncio.timeout(10):
        await task
    assert asked == 3


async def test_what_a_reaped_session_held_is_nobodys_business_here(bench: Bench) -> None:
    """Rule 19: running jobs are stopped without a word, what was claimed in advance is not begun."""
    running, *ahead = bench.claim(1, 2, 3)
    bench.queue.put(ahead)
    task = asyncio.create_task(asyncio.Event().wait())
    attempt = Attempt(running, describe(Mail), task, 1, 0.0, True)
    bench.queue.running.add(attempt)
    lost: list[SessionLost] = []
    with subscribe(lost.append, SessionLost):
        bench.reports.session_replaced(2)
    assert isinstance(attempt.verdict(), Fenced)
    assert task.cancelling() == 1
    assert len(bench.queue) == 0
    assert len(bench.ledger) == 1, "the one that runs, until it has ended"
    assert bench.ledger.session == 2
    assert bench.completer.idle
    assert bench.gate.is_open()
    assert [(event.session, event.successor) for event in lost] == [(1, 2)]


@pytest.mark.parametrize("runs", [False, True])
async def test_a_suspect_of_a_reaped_session_is_alone_until_it_has_ended(
    bench: Bench, runs: bool
) -> None:
    """Rule 20: in a thread it goes on, and may yet take the process and another suspect along."""
    (job,) = bench.claim(1)
    bench.gate.exclusive = True
    bench.ledger.when_settled(job.token, bench.gate.free)
    if runs:
        task = asyncio.create_task(asyncio.Event().wait())
        bench.queue.running.add(Attempt(job, describe(Mail), task, 1, 0.0, True))
    else:
        bench.queue.put([job])
    bench.reports.session_replaced(2)
    assert bench.gate.exclusive is runs
    bench.completer.taken_away(job, 1)
    assert not bench.gate.exclusive


async def test_names_without_end_are_not_remembered_without_end(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """They are a producer's to choose."""
    for number in range(1100):
        bench.reports.maintained(Maintenance(alive=True, unknown=[(f"type{number}", "default")]))
    assert len(bench.reports._warned) == 1000
    assert caplog.text.count("register_job_type is missing") == 1000


async def test_rescued_jobs_that_made_way_are_told(bench: Bench) -> None:
    """Rule 26: a job that is nowhere any more can be explained."""
    told: list[JobSuperseded] = []
    with subscribe(told.append, JobSuperseded):
        bench.reports.rescued([DeadSession(7, "other", "its lease ran out", 3, (11, 12))])
    assert [event.job_id for event in told] == [11, 12]
    assert bench.claimer.suspects, "they are looked for at once"
    assert bench.claimer.woken == 1
    assert bench.completer.superseded == 2


async def test_rescued_jobs_are_looked_for_by_those_who_hear_of_them(bench: Bench) -> None:
    """Guarantee 4: the next housekeeping would say so, a second later."""
    for queue, looks in (("elsewhere", False), ("default", True)):
        bench.reports.wake(Wake(queue, 3, 17, suspects=True))
        assert bench.claimer.suspects is looks
    assert bench.claimer.woken == 1


async def test_a_session_that_is_not_kept_ends_the_runner(bench: Bench) -> None:
    """Soon others would take its jobs for theirs."""
    error = ZeroDivisionError()
    bench.reports.thread_died(error)
    assert bench.died == [error]


async def test_a_wake_up_reaches_hints_and_claimers(bench: Bench) -> None:
    """Rules 11 and 27: of its queue, or of all."""
    wakes = [Wake("default", 3, 17), Wake("elsewhere", 0, 1), Wake()]
    for wake in wakes:
        bench.reports.wake(wake)
    assert bench.storage.wakes == wakes
    assert bench.claimer.woken == 2


async def test_a_name_that_somebody_wrote_into_the_table_is_one_line_of_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    name = "send\nCRITICAL all is lost\x1b[31m"
    bench.reports.maintained(Maintenance(alive=True, unknown=[(name, "default"), ("send", "")]))
    bench.reports.maintained(Maintenance(alive=True, stray=[(name, "elsewhere")]))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert all(text.isprintable() for text in said)
    assert "jobs of type send have been waiting" in said[1]


class Debugger(bdb.Bdb):
    """Stops at the first line, as `breakpoint()` does, and shows where its user would sit."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ""

    def user_line(self, frame: FrameType) -> None:
        self.stack = "".join(traceback.format_stack())
        self.set_quit()


def stack_in(path: str) -> str:
    """The stack of a loop that stands still in a file of this name."""
    found: dict[str, Any] = {"traceback": traceback}
    exec(compile("stack = ''.join(traceback.format_stack())", path, "exec"), found)
    return str(found["stack"])


async def test_a_loop_that_stands_still_is_left_alone_only_while_it_is_debugged(
    bench: Bench,
) -> None:
    """A job's own file may be called nearly like a debugger's."""
    debugger, tracing = Debugger(), sys.gettrace()
    try:
        debugger.run("pass")
    finally:
        sys.settrace(tracing)
    assert "bdb.py" in debugger.stack
    bench.reports.stalled(9.0, debugger.stack, limit=5.0)
    assert bench.ended == []
    stacks = [stack_in(f"/srv/shop/{name}") for name in ("webdb.py", "bdb.py", "jobs_pydevd.py")]
    for stack in stacks:
        bench.reports.stalled(9.0, stack, limit=5.0)
    assert bench.ended == stacks
