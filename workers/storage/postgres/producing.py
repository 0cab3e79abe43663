"""Writing new jobs on the engine's own connections. (`connections.py` writes them on the caller's.)"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import psycopg

from ... import failpoints
from ...job import NewJob
from .checkout import Checkout
from .fitting import fetch_on
from .literals import text_array
from .statements import statement

__all__ = ["enqueue"]

_ENQUEUE_BATCH, _ENQUEUE_DEDUPLICATED = map(statement, ("enqueue_batch", "enqueue_deduplicated"))
_COMMON = ("job_type", "queue", "priority", "run_at", "delay")
_kind = attrgetter("deduplicated", *_COMMON)


async def enqueue(checkout: Checkout, jobs: Sequence[NewJob]) -> list[int | None]:
    """Write jobs of any types in one transaction, in their order; one statement for each run of jobs of a kind."""
    runs = [(kind, list(run)) for kind, run in groupby(jobs, _kind)]

    async def write(conn: psycopg.AsyncConnection[Any]) -> list[int | None]:
        ids: list[int | None] = []
        async with conn.transaction():
            for (deduplicated, *common), run in runs:
                params = dict(zip(_COMMON, common, strict=True))
                params["data"] = text_array([job.data for job in run])
                sql = _ENQUEUE_DEDUPLICATED if deduplicated else _ENQUEUE_BATCH
                ids += [row[0] for row in await fetch_on(conn, sql, params)]
                failpoints.hit("enqueue written")
        failpoints.hit("enqueued")
        return ids

    return await checkout.run(write) if jobs else []
