"""How `workers run` shows that it works: what became of the jobs of the last second, in one line, and no line when idle.

A line for each job, at DEBUG, would cost more than most jobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

from ..lifecycle import Bury
from ..telemetry import JobFinished, subscribe

__all__ = ["Tally"]

logger = logging.getLogger("workers")

EVERY = 1.0


class Tally(AbstractContextManager["Tally"]):
    """Counts while it is entered. For the event loop that the runner is on."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._due: asyncio.TimerHandle | None = None
        self._subscribed = ExitStack()

    def __enter__(self) -> Tally:
        if logger.isEnabledFor(logging.INFO):
            self._subscribed.enter_context(subscribe(self._count, JobFinished))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._subscribed.close()
        if self._due is not None:
            self._due.cancel()
            self._tell()

    def _count(self, event: JobFinished) -> None:
        is_dead = isinstance(event.transition, Bury)
        ended = "dead" if is_dead else type(event.outcome).__name__.lower()
        self._counts[event.job.queue, ended] += 1
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(EVERY, self._tell)

    def _tell(self) -> None:
        counts, self._counts, self._due = self._counts, Counter(), None
        for queue in sorted({queue for queue, _ in counts}):
            ended = {outcome: n for (name, outcome), n in sorted(counts.items()) if name == queue}
            text = ", ".join(f"{n} {outcome}" for outcome, n in ended.items())
            logger.info("queue %s: %s", queue, text, extra={"queue": queue, "jobs": ended})
