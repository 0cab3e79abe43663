"""Writes outcomes. While one statement is on its way, and a moment longer, the next batch gathers: no delay when idle.

Three streams, as one kind must not hold up another: plain completions; deduplicated jobs that go back, which may have to
wait for a transaction that is just enqueueing the same one; all other ends. Every write is guarded; what a write did not
find is fenced, unless its first try may have gone through.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Sequence
from operator import attrgetter

import anyio
import msgspec

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
#: So many outcomes that can't be written are enough: should the process die, each of these jobs runs again.
MOST_UNWRITTEN = 5000
#: With so many, and none written for so many seconds, something is wrong.
_STUCK_SECONDS = 1.0
_LOCKED = "the outcomes of %d jobs wait for whoever has locked their rows"
_ENQUEUED = "%d jobs go back when the transactions are over that are just enqueueing the same"

_token, _token_shown = attrgetter("token"), attrgetter("guard.token")


class Completer:
    """Reports are plain calls that can't be cancelled; `run` does the writing."""

    def __init__(self, storage: Storage, ledger: Ledger) -> None:
        self._storage = storage
        self._ledger = ledger
        self._done: Stream[Guard] = Stream(self._write_done, self._refused_done)
        self._rest: Stream[Settlement] = Stream(self._write_rest, self._refused)
        self._back: Stream[Settlement] = Stream(self._write_back, self._refused)
        self._streams = (self._done, self._rest, self._back)
        self._forgotten: list[int] = []
        self._in_doubt: set[int] = set()
        self._blocked: set[int] = set()
        self._stuck: set[int] = set()
        self._relief = asyncio.Event()
        self._crowded = False
        self.fenced = 0
        self.superseded = 0

    @property
    def unwritten(self) -> int:
        """How many outcomes wait to be written."""
        return len(self._done) + len(self._rest) + len(self._back)

    async def wait_for_relief(self) -> None:
        """Until so few outcomes wait to be written that other jobs may be begun."""
        while self.unwritten >= MOST_UNWRITTEN:
            self._relief.clear()
            with anyio.move_on_after(_STUCK_SECONDS):
                await self._relief.wait()
                continue  # a slow disk is no trouble
            if not self._crowded:
                text = "%d outcomes can't be written yet: nothing is claimed until they are fewer"
                logger.warning(text, self.unwritten)
            self._crowded = True
            await self._relief.wait()
        self._crowded = False

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
        """Nothing is to be written: it has been, in the job's own transaction, or the job was never begun."""
        self._forget(self._ledger.settled([Guard(job.id, job.token)]))

    def taken_away(self, job: ClaimedJob, session: int) -> None:
        """Nothing is to be written, as the job that ran is somebody else's by now."""
        self._fence(session, job.id)
        self.dropped(job)

    def made_way(self, session: int, job_ids: Collection[int]) -> None:
        """Count jobs that, on their way back to waiting, met identical ones."""
        self.superseded += len(job_ids)
        for job_id in job_ids:
            text = "job %d made way for an identical one that waits"
            logger.info(text, job_id, extra={"job_id": job_id, "session": session})
            telemetry.emit(telemetry.JobSuperseded(session=session, job_id=job_id))

    def close(self) -> None:
        """End `run` once everything is written."""
        for stream in self._streams:
            stream.closed = True
            stream.event.set()

    async def break_off(self, run: asyncio.Task[None], seconds: float) -> None:
        """Cancel `run` amid its statements, and wait for its end, for so long: until then they hold their rows."""
        for stream in self._streams:
            stream.break_off()
        run.cancel()
        await asyncio.wait([run], timeout=seconds)

    async def run(self) -> None:
        """Write until closed."""
        async with anyio.create_task_group() as group:
            for stream in self._streams:
                group.start_soon(Deferred, stream.run)

    async def _write_done(self, guards: list[Guard], uncertain: bool) -> None:
        blocked: set[int] = set()
        # a copy: more may come while it is written
        forgotten = self._ledger.by_session([*self._forgotten], int)
        groups = self._ledger.by_session(guards, _token)
        for session in forgotten.keys() - groups.keys():
            await self._complete(session, [], forgotten[session], uncertain)
        for session, group in groups.items():
            closing = [*self._ledger.closing(group), *forgotten.get(session, ())]
            blocked |= await self._complete(session, group, closing, uncertain)
        if blocked or self._blocked:  # on the way of each completion: nearly never
            self._done.put_aside([guard for guard in guards if guard.id in blocked], uncertain)
            self._tell_blocked({guard.id for guard in guards}, blocked, _LOCKED)

    async def _complete(
        self, session: int, guards: Sequence[Guard], closing: Sequence[int], uncertain: bool
    ) -> set[int]:
        failpoints.hit("complete")
        done = await self._storage.complete(session, guards, closing)
        failpoints.hit("completed")
        if not done.blocked:
            self._forgotten = [token for token in self._forgotten if token not in closing]
        return self._settled(session, guards, closing, done, uncertain)

    async def _write_back(self, settlements: list[Settlement], uncertain: bool) -> None:
        await self._write(self._back, settlements, uncertain, _ENQUEUED)

    async def _write_rest(self, settlements: list[Settlement], uncertain: bool) -> None:
        await self._write(self._rest, settlements, uncertain, _LOCKED)

    async def _write(
        self,
        stream: Stream[Settlement],
        settlements: list[Settlement],
        uncertain: bool,
        why: str,
    ) -> None:
        blocked = await self._settle(settlements, uncertain)
        stream.put_aside([item for item in settlements if item.guard.id in blocked], uncertain)
        self._tell_blocked({item.guard.id for item in settlements}, blocked, why)

    def _tell_blocked(self, tried: set[int], blocked: set[int], why: str) -> None:
        """Once for each job that has to wait."""
        if new := blocked - self._blocked:
            logger.warning(why, len(new), extra={"job_ids": sorted(new)})
        self._blocked = (self._blocked - tried) | blocked

    async def _settle(self, settlements: list[Settlement], uncertain: bool) -> set[int]:
        """Write them; returns the ids of those that have to wait."""
        blocked: set[int] = set()
        for session, group in self._ledger.by_session(settlements, _token_shown).items():
            guards = [item.guard for item in group]
            closing = self._ledger.closing(guards)
            failpoints.hit("settle")
            settled = await self._storage.settle(session, group, closing)
            failpoints.hit("settled")
            blocked |= self._settled(session, guards, closing, settled, uncertain)
        return blocked

    async def _refused_done(self, guard: Guard, error: StorageError) -> Guard | None:
        return None if await self._give_up(guard, error) else guard

    async def _refused(self, item: Settlement, error: StorageError) -> Settlement | None:
        # a database that is not UTF8 can't hold every text
        if (plain := _in_ascii(item)) is not None:
            return plain
        return None if await self._give_up(item.guard, error) else item

    async def _give_up(self, guard: Guard, error: StorageError) -> bool:
        """The one that the store refuses: bury it, else let it wait, so that it is nobody's. False where that is refused
        as well: then nothing at all is to be written, for now, and the outcome itself is tried again."""
        extra, known = {"job_id": guard.id}, guard.id in self._stuck
        if not known:
            logger.error("the outcome of job %d was refused: %s", guard.id, error, extra=extra)
        reason = storable(f"its own outcome was refused by the store: {error}")[:500]
        if await self._insist(Settlement(guard, False, Bury(reason))):
            return True
        if await self._insist(Settlement(guard, False, Wait(_REFUSED_WAIT))):
            text = "job %d can't be buried either; it was given back, and runs again in %g s"
            logger.critical(text, guard.id, _REFUSED_WAIT, extra=extra)
            return True
        if not known:
            self._stuck.add(guard.id)
            text = "job %d can't be buried or given back either; its outcome is tried again until it can be written"
            logger.critical(text, guard.id, extra=extra)
        return False

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
    ) -> set[int]:
        """Book what a write did; returns the ids of those that have to wait."""
        self._relief.set()
        blocked = set(settled.blocked)
        if blocked:  # then no claim is forgotten
            guards, closing = [guard for guard in guards if guard.id not in blocked], ()
        if self._stuck:
            self._stuck.difference_update(guard.id for guard in guards)
        emptied = self._ledger.settled(guards)
        # the last two jobs of a claim may have been written at the same time, in both streams
        self._forget([token for token in emptied if token not in closing])
        self.made_way(session, settled.superseded)
        doubted = self._no_longer_in_doubt(guards) if self._in_doubt else set()
        if settled.count == len(guards) or uncertain:
            return blocked
        missing = {guard.id for guard in guards} - set(settled.written) - set(settled.superseded)
        for job_id in missing - doubted:
            self._fence(session, job_id)
        return blocked

    def _fence(self, session: int, job_id: int) -> None:
        self.fenced += 1
        text = "job %d was taken away; its outcome is not written"
        logger.warning(text, job_id, extra={"job_id": job_id, "session": session})
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


def _in_ascii(item: Settlement) -> Settlement | None:
    """The same with no other characters in its texts; None where there are none."""
    transition = item.transition
    texts = {
        name: text.encode("ascii", "backslashreplace").decode("ascii")
        for name in transition.__struct_fields__
        if isinstance(text := getattr(transition, name), str) and not text.isascii()
    }
    if not texts:
        return None
    return msgspec.structs.replace(item, transition=msgspec.structs.replace(transition, **texts))
