"""What an attempt comes to without waiting for anything is known at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, cast

import pytest

from workers import BackgroundJob
from workers.errors import StorageUnavailableError
from workers.job import ClaimedJob
from workers.job_type import describe
from workers.lifecycle import Bury
from workers.runtime.attempt import Attempt, Fenced
from workers.runtime.executor import DONE, Executor
from workers.storage.base import Guard, Settlement, Storage


class Plain(BackgroundJob[Any]):
    number: int

    async def run(self, ctx: Any) -> None: ...


class InThread(BackgroundJob[Any]):
    number: int

    def run(self, ctx: Any) -> None: ...


class InTransaction(BackgroundJob[Any]):
    transactional = True

    number: int

    async def run(self, ctx: Any) -> None: ...


def start(job_class: type[BackgroundJob[Any]], data: str) -> Any:
    """What becomes of a job of that class."""
    task = asyncio.current_task()
    assert task is not None
    job = ClaimedJob(1, job_class.job_name, "default", 0, data, 0, 0, False, 1)
    executor = Executor(cast(Storage, None), None, copy_context(), 1, set(), lambda: False)
    job_type = describe(job_class)
    return executor.start(Attempt(job, job_type, task, 1, 0.0, job_type.is_async))


class LosesTheReply:
    """A storage whose first transaction ends without an answer, after the session was reaped. Then the row is gone."""

    connection = None

    def __init__(self) -> None:
        self.attempt: Attempt | None = None

    @asynccontextmanager
    async def transaction(self, session: int, guard: Guard) -> AsyncIterator[Any]:
        if self.attempt is None:
            yield None
            return
        yield self
        self.attempt.stop(Fenced())
        self.attempt = None
        raise StorageUnavailableError("no answer")

    async def finish(self, settlement: Settlement) -> None: ...


async def test_a_row_that_is_gone_says_nothing_of_a_reaped_sessions_commit() -> None:
    """Another runner may have run that job to its end: it is not told as done here."""
    storage, task = LosesTheReply(), asyncio.current_task()
    assert task is not None
    job = ClaimedJob(1, "in_transaction", "default", 0, '{"number": 1}', 0, 0, False, 1)
    executor = Executor(cast(Storage, storage), None, copy_context(), 1, set(), lambda: False)
    attempt = Attempt(job, describe(InTransaction), task, 1, 0.0, True)
    storage.attempt = attempt
    ended = executor.start(attempt)
    assert not isinstance(ended, tuple)
    assert await ended == (None, None)


async def test_a_job_that_never_waits_has_ended_at_once() -> None:
    assert start(Plain, '{"number": 1}') is DONE


@pytest.mark.parametrize("job_class", [Plain, InThread, InTransaction])
async def test_a_job_that_can_not_be_decoded_is_not_waited_for(
    job_class: type[BackgroundJob[Any]],
) -> None:
    """Nobody wakes the other workers for it, and the one that has it does not take it for a rest."""
    ended = start(job_class, '{"number": "one"}')
    assert isinstance(ended, tuple)
    assert isinstance(ended[1], Bury)
