"""Reading jobs, for people and dashboards: nothing here is on a hot path."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from ...job import JobRecord, JobState
from ..base import QueueStats
from .checkout import Checkout
from .statements import statement

__all__ = ["JobReader"]

_STATS, _LIST_JOBS, _FAILED_JOBS = map(statement, ("stats", "list_jobs", "failed_jobs"))

#: The columns of list_jobs.sql.
_COLUMNS = JobRecord.__struct_fields__
_TIMES = ("created_at", "last_retry", "run_at", "finished_at")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime(1, 1, 2, tzinfo=UTC).timestamp()
_LAST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class JobReader:
    """See `storage.base.Storage`, whose verbs these are."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout

    async def stats(self) -> list[QueueStats]:
        """Counts per queue; reads the whole table."""
        rows = await self._checkout.fetch(_STATS, {}, prepare=False)
        fields = QueueStats.__struct_fields__
        return [QueueStats(**dict(zip(fields, row, strict=True))) for row in rows]

    async def find(self, job_id: int) -> JobRecord | None:
        """One job, wherever it stands."""
        found = await self._list(state=None, id=job_id, limit=1, after=-(2**63))
        return found[0] if found else None

    async def list_jobs(self, state: JobState, *, limit: int, after: int) -> list[JobRecord]:
        """Jobs in `state` with an id above `after`, in id order."""
        return await self._list(state=JobState(state).value, id=None, limit=limit, after=after)

    async def _list(self, **params: Any) -> list[JobRecord]:
        rows = await self._checkout.fetch(_LIST_JOBS, params, prepare=False)
        return [_record(row) for row in rows]

    async def failed_jobs(self, limit: int) -> tuple[int, list[int]]:
        """How many jobs are dead, or have failed and not succeeded since, and the first ids."""
        ((count, ids),) = await self._checkout.fetch(_FAILED_JOBS, {"limit": limit}, prepare=False)
        return count, ids


def _record(row: tuple[Any, ...]) -> JobRecord:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["state"] = JobState(values["state"])
    for name in _TIMES:
        values[name] = _moment(values[name])
    return JobRecord(**values)


def _moment(seconds: float | None) -> datetime | None:
    """A time as Python has it: PostgreSQL knows infinity, and years beyond 9999."""
    if seconds is None:
        return None
    return _EPOCH + timedelta(seconds=min(max(seconds, _FIRST), _LAST))
