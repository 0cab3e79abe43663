"""Whether a claim takes longer the more jobs are waiting.

Lines of several lengths stand beside each other in schemas of their own, and claims are made from them in turns, through the
library's engine: ten jobs a claim, which is what a default runner takes when its workers are busy and nothing is claimed in
advance, so that finding the rows weighs more than writing them. What is claimed is completed and replaced.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import ExitStack

from workers.storage.base import ClaimRequest, Guard
from workers.storage.postgres.storage import PostgresStorage

from .bench import Options, fill, fresh_schema, rows
from .report import Pair, Point, Result, Sample, summarize

__all__ = ["BacklogResult", "backlog"]

_LIMIT = 10
_WARM_UP = 20
_LEASE = 3600.0


class BacklogResult(Result, kw_only=True, omit_defaults=True):
    """Of the longest line; `points` has the p95 of each."""

    p95_ms: float


class _Line:
    """`size` waiting jobs, and the session that claims from them."""

    def __init__(self, dsn: str, size: int) -> None:
        self.size = size
        #: No job was claimed twice, and none is missing.
        self.intact = False
        self.samples: list[Sample] = []
        self.p95_ms: list[float] = []
        self._dsn = dsn
        self._storage = PostgresStorage(dsn, listen=False)
        self._control = self._storage.control()
        self._session = self._control.open("backlog", _LEASE)
        self._token = 0
        self._claimed: list[int] = []
        self._replaced = 0
        fill(dsn, size)

    async def open(self) -> None:
        await self._storage.open()
        await self._claim(_WARM_UP)
        self._replace()

    async def close(self) -> None:
        await self._storage.close()
        self._control.close()
        claimed_once = len(set(self._claimed)) == len(self._claimed)
        self.intact = claimed_once and rows(self._dsn) == self.size

    async def measure(self, claims: int) -> None:
        """Make `claims` claims."""
        times = sorted(await self._claim(claims))
        self._replace()
        self.p95_ms.append(times[int(len(times) * 0.95)] * 1000)
        p50 = statistics.median(times)
        p99_ms = times[int(len(times) * 0.99)] * 1000
        self.samples.append(
            Sample(per_second=1 / p50, exactly_once=True, p50_ms=p50 * 1000, p99_ms=p99_ms)
        )

    def _replace(self) -> None:
        """As many again as were taken: the line is as long as it says."""
        taken = len(self._claimed) - self._replaced
        fill(self._dsn, taken, first=self.size + self._replaced)
        self._replaced += taken

    async def _claim(self, claims: int) -> list[float]:
        times = []
        for _ in range(claims):
            self._token += 1
            request = ClaimRequest(
                session=self._session,
                token=self._token,
                queue="default",
                job_types=("noop",),
                limit=_LIMIT,
            )
            start = time.perf_counter()
            claimed = await self._storage.claim(request)
            times.append(time.perf_counter() - start)
            guards = [Guard(job.id, self._token) for job in claimed.jobs]
            self._claimed += [guard.id for guard in guards]
            await self._storage.complete(self._session, guards, [self._token])
        return times


def backlog(options: Options) -> BacklogResult:
    """10,000, 1,000,000 and 5,000,000 waiting (3,000, 30,000 and 300,000 when quick); 300 claims a round (100).

    `ratio`: the p95 of the longest line over that of the shortest; `per_second`: claims.
    """
    sizes = options.pick(
        full=(10_000, 1_000_000, 5_000_000),
        quick=(3_000, 30_000, 300_000),
        tiny=(300, 1_000, 3_000),
    )
    claims = options.pick(full=300, quick=100, tiny=20)
    with ExitStack() as stack, asyncio.Runner(loop_factory=options.loop_factory) as loop:
        lines = [_Line(stack.enter_context(fresh_schema(options)), size) for size in sizes]
        for waiting in lines:
            loop.run(waiting.open())
        for turn in range(options.pairs):
            for waiting in lines[:: -1 if turn % 2 else 1]:
                loop.run(waiting.measure(claims))
        for waiting in lines:
            loop.run(waiting.close())
    return _summary(lines)


def _summary(lines: list[_Line]) -> BacklogResult:
    shortest, longest = lines[0], lines[-1]
    pairs: list[Pair] = list(zip(longest.samples, shortest.samples, strict=True))
    ratios = [most / least for most, least in zip(longest.p95_ms, shortest.p95_ms, strict=True)]
    p95s = [statistics.median(waiting.p95_ms) for waiting in lines]
    points = [
        Point(waiting.size, round(p95, 3), round(p95s[0], 3))
        for waiting, p95 in zip(lines, p95s, strict=True)
    ]
    p95_ms = round(p95s[-1], 3)
    result = summarize(
        BacklogResult, "backlog", longest.size, pairs, ratios, p95_ms=p95_ms, points=points
    )
    result.exactly_once = all(waiting.intact for waiting in lines)
    return result
