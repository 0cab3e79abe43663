"""The jobs of one queue that this runner holds, and the workers that wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence

from ..config import QueueConfig
from ..job import ClaimedJob
from .attempt import Attempt
from .demand import Demand

__all__ = ["WorkQueue"]


class WorkQueue:
    """Claimed jobs on their way from the claimer to the workers. Event loop only."""

    def __init__(self, name: str, config: QueueConfig) -> None:
        self.name = name
        self.config = config
        self.demand = Demand(config.num_workers)
        self.running: set[Attempt] = set()
        self.closed = False
        #: Workers that neither wait for a job nor stand still in one.
        self.active = 0
        #: Set when the claimer has a reason to look: room, a wake-up, the end.
        self.attention = asyncio.Event()
        self._jobs: deque[ClaimedJob] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._refill_at = 0
        self._good_until = math.inf

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def idle(self) -> int:
        """Workers that wait for a job. None while there are jobs: then it is those that others are enough for."""
        return 0 if self._jobs else len(self._waiting)

    def room(self, *, prefetch: bool = True) -> int:
        """How many jobs to claim now. Claims are made when half of what is held in advance is used up, not one by one."""
        ahead = self.demand.prefetch if prefetch else 0
        self._refill_at = ahead // 2
        held = len(self._jobs)
        if held > self._refill_at:
            return 0
        return max(0, self.idle + ahead - held)

    def put(self, jobs: Sequence[ClaimedJob]) -> None:
        """Hand jobs to the workers.

        One of them is enough for jobs that never wait: more would take turns with it, and keep the loop from what else it
        has to do. Once a job waits the others are woken.
        """
        self._jobs.extend(jobs)
        if jobs and not self.active:
            self._wake(1)

    def stands_still(self) -> None:
        """A worker waits in its job, or has ended: what is here is for others. It counts itself active when it goes on."""
        self.active -= 1
        if not self.active and self._jobs:
            self._wake(len(self._jobs))

    def take_back(self, up_to: int | None = None) -> list[ClaimedJob]:
        """Jobs that have not been started, of claims up to the token `up_to` (or of all): they are no longer here."""
        taken = [job for job in self._jobs if up_to is None or job.token <= up_to]
        if taken:
            gone = set(map(id, taken))
            self._jobs = deque(job for job in self._jobs if id(job) not in gone)
        return taken

    def oldest_token(self) -> int | None:
        """The token of the job that is next."""
        return self._jobs[0].token if self._jobs else None

    def renewed(self, until: float) -> None:
        """The jobs here are surely this session's until then, by the monotonic clock.

        A process that stood still may find that they have long been given to others: it starts none before it has asked.
        """
        self._good_until = until
        if self._jobs and not self.active:
            self._wake(1)

    def pop(self, now: float) -> ClaimedJob | None:
        """The next job, if there is one that may be started `now`."""
        if self.closed or not self._jobs or now >= self._good_until:
            return None
        job = self._jobs.popleft()
        if len(self._jobs) <= self._refill_at:
            self.attention.set()
        return job

    async def wait(self) -> None:
        """Wait until there may be a job to start, or the queue is closed."""
        if not (self._jobs and time.monotonic() < self._good_until):
            await self.step_aside()

    async def step_aside(self) -> None:
        """Wait though there are jobs: another worker takes them, until it stands still."""
        if self.closed:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self.attention.set()
        self.active -= 1
        try:
            await waiter
        finally:
            if waiter.cancelled() or not waiter.done():  # nobody has woken it
                self.active += 1
                with contextlib.suppress(ValueError):
                    self._waiting.remove(waiter)

    def close(self) -> None:
        """No job is begun any more: the workers end when they have finished what they run. The rest is to be taken back."""
        self.closed = True
        self.attention.set()
        self._wake(len(self._waiting))

    def _wake(self, count: int) -> None:
        while count and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self.active += 1
                count -= 1
