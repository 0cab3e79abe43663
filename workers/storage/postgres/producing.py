"""Writing new jobs on the engine's own connections. (`connections.py` writes them on the caller's.)"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import psycopg

from ...job import NewJob
from .checkout import Checkout, fetch_on
from .literals import text_array
from .statements import statement

__all__ = ["enqueue"]

_ENQUEUE_BATCH, _ENQUEUE_DEDUPLICATED = map(statement, ("enqueue_batch", "enqueue_deduplicated"))
_COMMON = ("job_type", "queue", "priority", "run_at", "delay")


async def enqueue(checkout: Checkout, jobs: Sequence[NewJob]) -> list[int | None]:
    """Write jobs of any types in one transaction; one statement for each kind of job."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        groups[job.deduplicated, *(getattr(job, name) for name in _COMMON)].append(index)
    ids: list[int | None] = [None] * len(jobs)

    async def write(conn: psycopg.AsyncConnection[Any]) -> None:
        async with conn.transaction():
            for (deduplicated, *common), indexes in groups.items():
                params = dict(zip(_COMMON, common, strict=True))
                params["data"] = text_array([jobs[index].data for index in indexes])
                sql = _ENQUEUE_DEDUPLICATED if deduplicated else _ENQUEUE_BATCH
                for index, row in zip(indexes, await fetch_on(conn, sql, params), strict=True):
                    ids[index] = row[0]

    if jobs:
        await checkout.run(write)
    return ids
