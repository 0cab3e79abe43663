"""Writes outcomes. While one statement is on its way the next batch gathers: no timer, and no delay when idle.

Three streams, as one kind must not hold up another: plain completions; deduplicated jobs that go back, which may have to
wait for a transaction that is just enqueueing the same one; all other ends. Every write is guarded; what a write did not
find is fenced, unless its first try may have gone through.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import anyio

from .. import failpoints, telemetry
from ..errors import StorageError, StorageUnavailableError
from ..job import ClaimedJob
from ..lifecycle import Bury, Transition, Wait
from ..storage.base import Guard, Settled, Settlement, Storage
from .driving import Deferred
from .failure import storable
from .ledger import Ledger
from .stream import RETRY_MOST, Stream

__all__ = ["Completer"]

logger = logging.getLogger("workers")

#: Seconds until a job runs again whose outcome can't be written.
_REFUSED_WAIT = 60.0

Item = TypeVar("Item")


class Completer:
    """Reports are plain calls that can't be cancelled; `run` does the writing."""

    def __init__(self, storage: Storage, ledger: Ledger) -> None:
        self._storage = storage
        self._ledger = ledger
        self._done: Stream[Guard] = Stream(self._write_done, self._refused)
        self._rest: Stream[Settlement] = Stream(self._write_rest, self._refused)
        self._back: Stream[Settlement] = Stream(self._write_back, self._refused)
        self._forgotten: list[int] = []
        self._in_doubt: set[int] = set()
        self._blocked: set[int] = set()
        self.fenced = 0
        self.superseded = 0

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be written."""
        return self._done.idle and self._rest.idle and self._back.idle

    def completed(self, job: ClaimedJob) -> None:
        """The job is finished and its row can go."""
        self._done.add(Guard(job.id, job.token))

    def ended(self, job: ClaimedJob, transition: Transition, *, in_doubt: bool = False) -> None:
        """Any other end. `in_doubt`: unless its own transaction was committed after all."""
        if in_doubt:
            self._in_doubt.add(job.id)
        settlement = Settlement(Guard(job.id, job.token), job.deduplicated, transition)
        (self._back if settlement.may_have_to_wait else self._rest).add(settlement)

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

    def close(self) -> None:
        """End `run` once everything is written."""
        for stream in (self._done, self._rest, self._back):
            stream.closed = True
            stream.event.set()

    async def run(self) -> None:
        """Write until closed."""
        async with anyio.create_task_group() as group:
            group.start_soon(Deferred, self._done.run)
            group.start_soon(Deferred, self._rest.run)
            group.start_soon(Deferred, self._back.run)

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

    async def _write_back(self, settlements: list[Settlement], uncertain: bool) -> None:
        blocked = await self._settle(settlements, uncertain)
        self._back.put_aside([item for item in settlements if item.guard.id in blocked])
        if new := blocked - self._blocked:
            text = (
                "%d jobs go back when the transactions are over that are just enqueueing the same"
            )
            logger.warning(text, len(new))
        self._blocked = (self._blocked - {item.guard.id for item in settlements}) | blocked

    async def _write_rest(self, settlements: list[Settlement], uncertain: bool) -> None:
        await self._settle(settlements, uncertain)

    async def _settle(self, settlements: list[Settlement], uncertain: bool) -> set[int]:
        """Write them; returns the ids of those that have to wait."""
        blocked: set[int] = set()
        for session, group in self._by_session(settlements, lambda item: item.guard.token).items():
            guards = [item.guard for item in group]
            closing = self._ledger.closing(guards)
            with anyio.CancelScope(shield=True):
                failpoints.hit("settle")
                settled = await self._storage.settle(session, group, closing)
                failpoints.hit("settled")
            if settled.blocked:  # then no claim is forgotten
                blocked.update(settled.blocked)
                guards, closing = [guard for guard in guards if guard.id not in blocked], []
            self._settled(session, guards, closing, settled, uncertain)
        return blocked

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
                await asyncio.sleep(RETRY_MOST * random.uniform(0.5, 1))
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
