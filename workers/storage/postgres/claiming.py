"""Claims: where to look, taking what is there, and what of it is known to the hints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter

from ... import failpoints
from ...job import ClaimedJob
from ..base import Claimed, ClaimRequest, Wake
from .claim_link import ClaimLink
from .hints import Plan, ScanHints, ScanKind
from .literals import integer_array, text_array
from .statements import statement

__all__ = ["HINTED", "SUSPECTS", "THOROUGH", "Claims"]

#: The claim with each of its scans.
HINTED, THOROUGH, SUSPECTS = (
    statement("claim").replace("SCAN", statement(scan))
    for scan in ("scan_hinted", "scan_thorough", "scan_suspects")
)


class Claims:
    """Of all queues that this runner works, each with its own hints."""

    def __init__(self, link: ClaimLink, clock: Callable[[], float]) -> None:
        self._link = link
        self._clock = clock
        self._hints: dict[str, ScanHints] = defaultdict(ScanHints)

    async def take(self, request: ClaimRequest) -> Claimed:
        """Take jobs, from where the last claim ended or from the whole queue; see queries/claim.sql."""
        if request.scan.suspects:
            found = await self._scan(request, request.limit, Plan(ScanKind.THOROUGH))
            return Claimed([job for job, _ in found or ()], complete=False)
        hints, thorough = self._hints[request.queue], request.scan.thorough
        taken: list[tuple[ClaimedJob, int]] = []
        while True:
            limit, start = request.limit - len(taken), self._clock()
            plan = hints.plan(start, thorough=thorough)
            found = await self._scan(request, limit, plan)
            if found is None:  # the session is not alive: what it can't claim may still be waiting
                return Claimed([job for job, _ in taken], complete=False)
            taken += found
            now = self._clock()
            thorough = hints.claimed(plan, found, limit, now, now - start)
            if not thorough:
                break
            if taken and hints.is_costly:  # the next claim makes it, while these run
                hints.missed()
                return Claimed(_in_order(taken), complete=False, more=True)
        complete = plan.kind is ScanKind.THOROUGH and len(found) < limit
        if len(taken) == len(found):  # of one scan: they are in order
            return Claimed([job for job, _ in taken], complete=complete)
        return Claimed(_in_order(taken), complete=complete)

    async def _scan(
        self, request: ClaimRequest, limit: int, plan: Plan
    ) -> list[tuple[ClaimedJob, int]] | None:
        """Jobs with their positions, in claim order; None when the session is not alive."""
        params = {
            "session": request.session,
            "token": request.token,
            "queue": request.queue,
            "job_types": _literal(request.job_types),
            "limit": limit,
        }
        if request.scan.suspects:
            sql, params["suspects"] = SUSPECTS, request.scan.suspects
        elif plan.kind is ScanKind.THOROUGH:
            sql = THOROUGH
        else:
            sql = HINTED
            params["priorities"] = integer_array(plan.priorities)
            params["positions"] = integer_array(plan.positions)
        rows = await self._link.claim(sql, params)
        failpoints.hit("scanned")
        if rows and rows[0][0] is None:
            return None
        if len(rows) > 1:  # UPDATE ... RETURNING has no order
            rows = sorted(rows, key=_position)
            rows.sort(key=_priority, reverse=True)
        queue, token = request.queue, request.token
        return [
            (ClaimedJob(id_, kind, queue, priority, data, retries, crashes, once, token), position)
            for id_, kind, priority, data, retries, crashes, once, position in rows
        ]

    def noticed(self, wake: Wake) -> None:
        """Pull the hint of the queue back to what became available."""
        if wake.unheard:
            for hints in self._hints.values():
                hints.missed()
        elif wake.queue in self._hints:  # if not: the first scan of a queue is thorough anyway
            self._hints[wake.queue].noticed(wake.priority, wake.position)


#: Columns of a claim's rows.
_priority, _position = itemgetter(2), itemgetter(-1)

#: The same few all day.
_literal: Callable[[tuple[str, ...]], str] = lru_cache(maxsize=256)(text_array)


def _in_order(taken: list[tuple[ClaimedJob, int]]) -> list[ClaimedJob]:
    taken.sort(key=_claim_order)
    return [job for job, _ in taken]


def _claim_order(item: tuple[ClaimedJob, int]) -> tuple[int, int]:
    return -item[0].priority, item[1]
