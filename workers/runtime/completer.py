"""Writes outcomes. While one statement is on its way the next batch gathers: no timer, and no delay when idle.

Two streams, so that a transition that has to wait (a give-back that meets a lock) does not hold up plain completions. Every
write is guarded; what a write did not find is fenced, unless its first try may have gone through. A batch that the store
refuses is split until the bad one is alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import anyio

from .. import failpoints, telemetry
from ..errors import StorageError, StorageUnavailableError
from ..job import ClaimedJob
from ..lifecycle import Bury, Transition, Wait
from ..storage.base import Guard, PartlySettledError, Settled, Settlement, Storage
from .driving import Deferred
from .failure import storable
from .ledger import Ledger

__all__ = ["Completer"]

logger = logging.getLogger("workers")

MAX_WRITE = 1000
_RETRY_MOST = 2.0
#: Seconds until a job runs again whose outcome can't be written.
_REFUSED_WAIT = 60.0

W = TypeVar("W", Guard, Settlement)
Item = TypeVar("Item")


class _Stream(Generic[W]):
    """One kind of write: a buffer, and the loop that empties it."""

    def __init__(
        self,
        write: Callable[[list[W], bool], Coroutine[Any, Any, None]],
        refused: Callable[[W, StorageError], Coroutine[Any, Any, None]],
    ) -> None:
        self._write: Callable[[list[W], bool], Coroutine[Any, Any, None]] = write
        self._refused: Callable[[W, StorageError], Coroutine[Any, Any, None]] = refused
        self.buffer: list[W] = []
        self.event = asyncio.Event()
        self.closed = False
        self.busy = False
        self._poked = False
        self._uncertain = False  # the next batch may have been written already

    def add(self, item: W) -> None:
        self.buffer.append(item)
        self.event.set()

    def poke(self) -> None:
        """Write, even if the batch is empty."""
        self._poked = True
        self.event.set()

    async def run(self) -> None:
        """Write until closed. Cancelled, it can be run again."""
        while True:
            self.event.clear()
            while self.buffer or self._poked:
                await self._write_next()
            if self.closed:
                return
            await self.event.wait()

    async def _write_next(self) -> None:
        batch, self.buffer = self.buffer[:MAX_WRITE], self.buffer[MAX_WRITE:]
        self._poked, self.busy = False, True
        try:
            await self._persist(batch, self._uncertain)
            self._uncertain = False
        except BaseException:
            self.buffer[:0] = batch
            self._uncertain = True
            raise
        finally:
            self.busy = False

    async def _persist(self, batch: list[W], uncertain: bool = False) -> None:
        """Write `batch`, however often it takes. `uncertain`: it may have been written already."""
        delay = 0.05
        while True:
            try:
                await self._write(batch, uncertain)
                return
            except StorageUnavailableError as error:
                if not uncertain:
                    logger.warning(
                        "outcomes of %d jobs can't be written now: %s", len(batch), error
                    )
                uncertain = True
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(_RETRY_MOST, delay * 2)
            except StorageError as error:
                if len(batch) > 1:
                    for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                        # of several kinds, those before the refused one are written
                        await self._persist(half, uncertain=True)
                    return
                await self._refused(batch[0], error)
                return


class Completer:
    """Reports are plain calls that can't be cancelled; `run` does the writing."""

    def __init__(self, storage: Storage, ledger: Ledger) -> None:
        self._storage = storage
        self._ledger = ledger
        self._done: _Stream[Guard] = _Stream(self._write_done, self._refused)
        self._rest: _Stream[Settlement] = _Stream(self._write_rest, self._refused)
        self._forgotten: list[int] = []
        self._in_doubt: set[int] = set()
        self.fenced = 0
        self.superseded = 0

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be written."""
        return not (self._done.buffer or self._done.busy or self._rest.buffer or self._rest.busy)

    def completed(self, job: ClaimedJob) -> None:
        """The job is finished and its row can go."""
        self._done.add(Guard(job.id, job.token))

    def ended(self, job: ClaimedJob, transition: Transition, *, in_doubt: bool = False) -> None:
        """Any other end. `in_doubt`: unless its own transaction was committed after all."""
        if in_doubt:
            self._in_doubt.add(job.id)
        self._rest.add(Settlement(Guard(job.id, job.token), job.deduplicated, transition))

    def dropped(self, job: ClaimedJob) -> None:
        """Nothing is to be written: it has been, in the job's own transaction, or the job is somebody else's."""
        self._forget(self._ledger.settled([Guard(job.id, job.token)]))

    def made_way(self, session: int, job_ids: Collection[int]) -> None:
        """Count jobs that, on their way back to waiting, met identical ones."""
        self.superseded += len(job_ids)
        for job_id in job_ids:
            text = "job %d made way for an identical one that waits"
            logger.info(text, job_id, extra={"job_id": job_id, "session": session})
            telemetry.emit(telemetry.JobSuperseded(session=session, job_id=job_id))

    @contextmanager
    def in_parts(self, session: int) -> Iterator[None]:
        """Around a write of which a part may have to wait: what made way is told now, as the next try does not meet it."""
        try:
            yield
        except PartlySettledError as error:
            self.made_way(session, error.superseded)
            raise

    def close(self) -> None:
        """End `run` once everything is written."""
        for stream in (self._done, self._rest):
            stream.closed = True
            stream.event.set()

    async def run(self) -> None:
        """Write until closed."""
        async with anyio.create_task_group() as group:
            group.start_soon(Deferred, self._done.run)
            group.start_soon(Deferred, self._rest.run)

    async def _write_done(self, guards: list[Guard], uncertain: bool) -> None:
        forgotten = self._by_session(self._forgotten, int)
        for session in forgotten.keys() - self._by_session(guards, _token).keys():
            await self._complete(session, [], forgotten[session], uncertain)
        for session, group in self._by_session(guards, _token).items():
            closing = [*self._ledger.closing(group), *forgotten.get(session, ())]
            await self._complete(session, group, closing, uncertain)

    async def _complete(
        self, session: int, guards: list[Guard], closing: list[int], uncertain: bool
    ) -> None:
        with anyio.CancelScope(shield=True):
            failpoints.hit("complete")
            written = await self._storage.complete(session, guards, closing)
            failpoints.hit("completed")
        self._forgotten = [token for token in self._forgotten if token not in closing]
        self._settled(session, guards, closing, Settled(written), uncertain)

    async def _write_rest(self, settlements: list[Settlement], uncertain: bool) -> None:
        for session, group in self._by_session(settlements, lambda item: item.guard.token).items():
            guards = [item.guard for item in group]
            closing = self._ledger.closing(guards)
            with anyio.CancelScope(shield=True):
                failpoints.hit("settle")
                with self.in_parts(session):
                    settled = await self._storage.settle(session, group, closing)
                failpoints.hit("settled")
            self._settled(session, guards, closing, settled, uncertain)

    async def _refused(self, item: Guard | Settlement, error: StorageError) -> None:
        """The one that the store refuses: bury it; if that is refused as well, let it wait, so that it is nobody's."""
        guard = item.guard if isinstance(item, Settlement) else item
        extra = {"job_id": guard.id}
        logger.error("the outcome of job %d was refused: %s", guard.id, error, extra=extra)
        reason = storable(f"its own outcome was refused by the store: {error}")[:500]
        for transition in (Bury(reason), Wait(_REFUSED_WAIT)):
            if await self._insist(Settlement(guard, False, transition)):
                return
            text = "job %d can't be buried either; it is given back, and runs again in %g s"
            logger.critical(text, guard.id, _REFUSED_WAIT, extra=extra)

    async def _insist(self, settlement: Settlement) -> bool:
        """Write it, however often it takes; False if it is refused."""
        while True:
            try:
                await self._write_rest([settlement], True)
                return True
            except StorageUnavailableError:
                await asyncio.sleep(_RETRY_MOST * random.uniform(0.5, 1))
            except StorageError:
                return False

    def _settled(
        self,
        session: int,
        guards: Sequence[Guard],
        closing: Sequence[int],
        settled: Settled,
        uncertain: bool,
    ) -> None:
        """Book what a write did."""
        emptied = self._ledger.settled(guards)
        # the last two jobs of a claim may have been written at the same time, in both streams
        self._forget([token for token in emptied if token not in closing])
        self.made_way(session, settled.superseded)
        doubted = self._no_longer_in_doubt(guards) if self._in_doubt else set()
        if settled.count == len(guards) or uncertain:
            return
        missing = {guard.id for guard in guards} - set(settled.written) - set(settled.superseded)
        for job_id in missing - doubted:
            self.fenced += 1
            logger.warning(
                "job %d was taken away; its outcome is not written",
                job_id,
                extra={"job_id": job_id},
            )
            telemetry.emit(telemetry.JobFenced(session=session, job_id=job_id))

    def _no_longer_in_doubt(self, guards: Sequence[Guard]) -> set[int]:
        """Those of them that may have been done in their own transactions: now it is known."""
        doubted = self._in_doubt & {guard.id for guard in guards}
        self._in_doubt -= doubted
        return doubted

    def _forget(self, tokens: Sequence[int]) -> None:
        """Nothing is left of these claims."""
        if tokens:
            self._forgotten += tokens
            self._done.poke()

    def _by_session(
        self, items: Sequence[Item], token: Callable[[Item], int]
    ) -> dict[int, list[Item]]:
        """Items by the session that claimed them: nearly always one."""
        groups: dict[int, list[Item]] = {}
        for item in items:
            groups.setdefault(self._ledger.session_of(token(item)), []).append(item)
        return groups


def _token(guard: Guard) -> int:
    return guard.token
