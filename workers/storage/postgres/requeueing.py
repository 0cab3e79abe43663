"""Dead jobs that get another life, while open transactions may just be enqueueing identical ones."""

from __future__ import annotations

import logging
from collections.abc import Collection

from ... import failpoints
from ...errors import StorageUnavailableError
from .checkout import Checkout, is_locked
from .literals import number_array
from .statements import statement

__all__ = ["requeue"]

logger = logging.getLogger("workers")

_REQUEUE = statement("requeue")
#: How long all of them wait together, then each part. What a statement has put back is locked until it ends, and a
#: transaction that it waits for may come to wait for that: it is to be over before PostgreSQL looks for a deadlock.
_TOGETHER, _PART = "250ms", "20ms"
#: Ids that a message names.
_NAMED = 10


async def requeue(checkout: Checkout, job_ids: Collection[int]) -> list[int]:
    """All together; where some have to wait for a transaction, in halves, until those are alone, and stay dead."""
    back: list[int] = []
    blocked: list[int] = []
    groups, patience = [sorted(set(job_ids))], _TOGETHER
    while groups:
        group = groups.pop()
        try:
            params = {"ids": number_array(group)}
            rows = await checkout.search(_REQUEUE, params, lock_timeout=patience)
            back += [row[0] for row in rows]
            failpoints.hit("requeued")
        except StorageUnavailableError as error:
            if not is_locked(error):
                raise
            patience = _PART
            if len(group) > 1:
                # the lower half first: they get their positions in the order of their ids
                half = len(group) // 2
                groups += group[half:], group[:half]
            else:
                blocked += group
    if blocked:
        named = ", ".join(map(str, blocked[:_NAMED])) + (", ..." if blocked[_NAMED:] else "")
        logger.warning(
            "%d dead jobs were not requeued, because transactions that are open enqueue identical ones: "
            "requeue them again when those have ended (%s)",
            len(blocked),
            named,
        )
    return back
