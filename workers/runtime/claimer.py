"""Claims jobs for one queue: as many as its workers can start soon, when they can, and not one more.

It looks when a worker is free, when half of what it holds in advance is used up, when a notification says that there is
something, and every poll interval. Claim and hand-over are one shield: a claim that is cancelled between the two would
leave jobs that nobody knows of. It is broken off only where it keeps the runner from its end, which gives back all of them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Sequence

import anyio

from .. import failpoints
from ..errors import StorageError, StorageUnavailableError
from ..job import ClaimedJob
from ..lifecycle import Release
from ..registry import Registry
from ..storage.base import Claimed, ClaimRequest, Guard, Scan, Storage
from .appetite import Appetite
from .completer import MOST_UNWRITTEN, Completer
from .driving import Shield
from .gate import Gate
from .ledger import Ledger
from .work_queue import WorkQueue

__all__ = ["MOST_SUSPECTS", "SHARED_CRASHES", "Claimer", "fragile_types"]

logger = logging.getLogger("workers")

#: A job that was claimed in advance and not started within this many seconds is given back.
START_WITHIN = 1.0
#: Above this many crashes a suspect runs while no other one of the kind runs in the same runner.
SHARED_CRASHES = 1
#: The most suspects that one claim takes. If one of them kills the process, all of them must be alone from then on, also
#: those that had not begun.
MOST_SUSPECTS = 10
#: Seconds that a claim on its way gets when the runner is shut down. It may wait for somebody's lock of the table.
_LAST_SECONDS = 1.0
_ANY_CRASHES = 32767
_RETRY_MOST = 5.0


def fragile_types(registry: Registry) -> set[str]:
    """Job types of which each suspect must be alone: the next crash buries it, whoever's doing it is."""
    return {kind.name for kind in registry if kind.policy.max_crashes == SHARED_CRASHES + 1}


class Claimer:
    """The claim loop of `queue`."""

    def __init__(
        self,
        storage: Storage,
        queue: WorkQueue,
        ledger: Ledger,
        completer: Completer,
        gate: Gate,
        job_types: tuple[str, ...],
        max_batch: int,
        *,
        fragile: Collection[str] = (),
    ) -> None:
        """`fragile`: see `fragile_types`."""
        self._storage = storage
        self._queue = queue
        self._ledger = ledger
        self._completer = completer
        self._gate = gate
        self._job_types = job_types
        self._sociable = tuple(name for name in job_types if name not in fragile)
        self._appetite = Appetite(max_batch)
        self._more = True
        self._lost: list[tuple[int, int]] = []  # (session, token) of claims whose reply never came
        self._failures = 0
        self.suspects = False
        self._shield = Shield()

    def found_suspects(self) -> None:
        """Jobs are waiting that were claimed when a process died."""
        self.suspects = True
        self.wake()

    def wake(self) -> None:
        """Something may be waiting."""
        self._more = True
        self._queue.attention.set()

    @property
    def sated(self) -> bool:
        """The last claim left nothing that it saw, and nothing has been heard of since."""
        return not self._more and not self._shield.busy

    async def run(self) -> None:
        """Claim until cancelled."""
        await self._shield.run(self._run)

    async def _run(self) -> None:
        queue, next_poll = self._queue, 0.0
        while True:
            await self._gate.wait_open()
            if self._completer.unwritten >= MOST_UNWRITTEN:
                await self._completer.wait_for_relief()
            queue.attention.clear()
            now = time.monotonic()
            self._give_back_overslept(now)
            if now >= next_poll:
                self._more = True
                next_poll = (
                    now + queue.config.poll_interval + random.uniform(0, queue.config.jitter)
                )
            # suspects are not claimed in advance, and would never find a worker idle behind jobs that are
            prefetch = not (self._gate.exclusive or self.suspects)
            room = queue.room(prefetch=prefetch)
            if self.suspects and queue.idle:
                await self.claim_suspects(self._appetite.bound(min(queue.idle, MOST_SUSPECTS)))
                continue
            if room and self._more:
                limit = self._appetite.bound(room)
                # a wake-up that comes while the claim is on its way counts for the next one
                self._more = False
                if await self.claim(limit) == limit:
                    # the next claim is on its way while these run
                    self._more = True
                else:
                    # the workers begin before this task arms its timer
                    await asyncio.sleep(0)
                continue
            await self._wait(next_poll - now, queue)

    def close(self) -> None:
        """Nothing is begun any more; a claim on its way has _LAST_SECONDS."""
        self._queue.close()
        self._shield.close(_LAST_SECONDS)
        for _, token in self._lost:  # from now on it is the session's thread that gives back
            self._ledger.lost(token, time.monotonic())

    async def claim(self, limit: int, *, thorough: bool = False) -> int:
        """One claim of ordinary jobs. Returns how many came; -1 when it could not be made, or none came although some may
        be there."""
        claimed = await self._take(limit, Scan(thorough=thorough))
        if claimed is None:
            return -1
        if claimed.more:
            self._more = True
        if thorough and not claimed.jobs and not claimed.complete:
            # the session was taken for dead: what waits is for others, or for the next one
            return -1
        return len(claimed.jobs)

    async def claim_suspects(self, limit: int) -> int:
        """One claim of jobs that were claimed when a process died: of those that may run beside each other or, when there
        are none, of a single one that must be alone. Returns how many came; -1 when it could not be made."""
        if self._sociable:
            scan = Scan(suspects=SHARED_CRASHES)
            claimed = await self._take(limit, scan, self._sociable)
            if claimed is None:
                return -1
            if claimed.jobs:
                return len(claimed.jobs)
        if self._gate.exclusive:
            self.suspects = False
            self._gate.call_when_free(self.found_suspects)
            return 0
        return await self._claim_alone()

    async def _claim_alone(self) -> int:
        gate, claimed = self._gate, None
        gate.exclusive = True  # until it is known what comes: other queues may ask at the same time
        try:
            claimed = await self._take(1, Scan(suspects=_ANY_CRASHES))
        finally:
            jobs = claimed.jobs if claimed is not None else ()
            # it is alone until its end is written: if the next one kills the process, it is not to be counted again
            alone = [job.token for job in jobs if self._must_be_alone(job)]
            if alone:
                self._ledger.when_settled(alone[0], gate.free)
            else:
                gate.free()
        if claimed is None:
            return -1
        if not jobs:
            self.suspects = False
        return len(jobs)

    def _must_be_alone(self, job: ClaimedJob) -> bool:
        return job.crashes > SHARED_CRASHES or job.job_type not in self._sociable

    async def _take(
        self, limit: int, scan: Scan, job_types: tuple[str, ...] | None = None
    ) -> Claimed | None:
        async def take() -> Claimed | None:
            if self._queue.closed or not self._gate.is_open():
                return None
            await self._release_lost()
            return await self._claim_and_hand_over(limit, scan, job_types or self._job_types)

        try:
            return await self._shield.take(take)
        except StorageError as error:
            self._appetite.choked(limit)
            await self._after_failure(error)
        return None

    async def _claim_and_hand_over(
        self, limit: int, scan: Scan, job_types: tuple[str, ...]
    ) -> Claimed:
        token, session = self._ledger.begin_claim(), self._ledger.session
        request = ClaimRequest(
            session=session,
            token=token,
            queue=self._queue.name,
            job_types=job_types,
            limit=limit,
            scan=scan,
        )
        try:
            failpoints.hit("claim")
            claimed = await self._storage.claim(request)
            failpoints.hit("claimed")
        except StorageUnavailableError:
            if self._queue.closed:
                self._ledger.lost(token, time.monotonic())
            else:
                self._lost.append((session, token))
            raise
        except asyncio.CancelledError:
            # broken off: it may land yet, and jobs that would not end may keep the session
            self._ledger.lost(token, time.monotonic())
            raise
        except BaseException:
            self._ledger.unclaimed(token)
            raise
        if self._failures:
            logger.info(
                "queue %s: claiming again", self._queue.name, extra={"queue": self._queue.name}
            )
            self._failures = 0
        self._ledger.claimed(token, claimed.jobs, time.monotonic())
        if claimed.jobs:
            self._appetite.took(claimed.jobs)
        # reaped while the reply was on its way: these are given back by whoever found that
        if session != self._ledger.session:
            self._ledger.settled([Guard(job.id, token) for job in claimed.jobs])
            return Claimed([], complete=False)
        self._queue.put(claimed.jobs)
        return claimed

    async def _release_lost(self) -> None:
        """Nothing is claimed before the claims whose reply was lost are given back."""
        while self._lost:
            session, token = self._lost[-1]
            # what has to wait is found by the session's thread, as nobody here knows of it
            released = await self._storage.release_claim(session, token)
            self._lost.pop()
            self._ledger.lost(token, time.monotonic())
            if released.count:
                logger.warning("gave back %d jobs of a claim whose reply was lost", released.count)
                self._completer.made_way(session, released.superseded)

    async def _after_failure(self, error: StorageError) -> None:
        self._failures += 1
        level = logging.WARNING if isinstance(error, StorageUnavailableError) else logging.ERROR
        if self._failures == 1:
            logger.log(level, "queue %s: claiming fails, trying on: %s", self._queue.name, error)
        self._more = True
        delay = min(_RETRY_MOST, 0.05 * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1)
        with anyio.move_on_after(delay):
            await asyncio.Event().wait()

    def _give_back_overslept(self, now: float) -> None:
        oldest = self._queue.oldest_token()
        if oldest is None or now - self._ledger.claimed_at(oldest) < START_WITHIN:
            return
        late = self._queue.take_back(oldest)
        if any(not job.crashes for job in late):  # suspects were not claimed in advance
            self._queue.demand.overslept()
        self.give_back(late)
        logger.debug(
            "queue %s: gave back %d jobs that no worker was free for", self._queue.name, len(late)
        )

    def give_back(self, jobs: Sequence[ClaimedJob]) -> None:
        """Jobs that were never started become available again, uncounted."""
        for job in jobs:
            self._completer.ended(job, Release())

    async def _wait(self, poll_in: float, queue: WorkQueue) -> None:
        """Until something calls for attention, the next poll, or the next look at what was claimed in advance."""
        seconds = min(poll_in, START_WITHIN / 2) if len(queue) else poll_in
        # a scope for each wait would cost a wake-up more than all that follows in here
        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), queue.attention.set)
        try:
            await queue.attention.wait()
        finally:
            timer.cancel()
