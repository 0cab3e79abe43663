"""Writes how jobs ended. What somebody else has locked holds up nothing: it is reported, and tried again by the caller."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ... import failpoints
from ...errors import StorageError, StorageUnavailableError
from ..base import Guard, Settled, Settlement
from .checkout import Checkout, is_locked, is_partial
from .literals import number_array
from .settling import KINDS, columns, grouped, guard_columns, settled
from .statements import statement

__all__ = ["Outcomes"]

_COMPLETE, _COMPLETE_UNLOCKED, _FORGET = map(statement, ("complete", "complete_unlocked", "forget"))
_SETTLE = {kind: statement(kind) for kind in KINDS}

#: A give-back of deduplicated jobs may have to wait for a transaction that is enqueueing an identical one.
_PATIENCE = "250ms"
#: There may be many, and those that are tried again know that they have to.
_EACH = "20ms"


class Outcomes:
    """One statement for each kind that occurs, on connections of `checkout`."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout

    async def complete(
        self, session: int, guards: Sequence[Guard], closed: Collection[int]
    ) -> Settled:
        """Delete finished jobs and forget the `closed` tokens."""
        params = guard_columns(guards) | {"session": session, "closed": number_array(closed)}
        try:
            await self._checkout.fetch(_COMPLETE, params)
        except StorageError as error:
            if not (is_locked(error) or is_partial(error)):
                raise
            rows = await self._checkout.search(_COMPLETE_UNLOCKED, params, lock_timeout=_PATIENCE)
            failpoints.hit("completed in part")
            return await self._closed(session, settled(rows), closed)
        return Settled([guard.id for guard in guards])

    async def settle(
        self, session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        """Write retries, releases, archives and deaths, one statement for each kind that occurs."""
        groups = grouped(settlements)
        rows: list[tuple[Any, ...]] = []
        blocked: list[int] = []
        for kind in KINDS:
            if group := groups.get(kind):
                rows += await self._write(kind, session, group, blocked)
                failpoints.hit(f"settled {kind}")
        return await self._closed(session, settled(rows, blocked), closed)

    async def _closed(self, session: int, found: Settled, closed: Collection[int]) -> Settled:
        """Forget the `closed` tokens, unless something still stands under them."""
        if closed and not found.blocked:
            await self._checkout.search(_FORGET, {"session": session, "closed": list(closed)})
        return found

    async def _write(
        self, kind: str, session: int, group: Sequence[Settlement], blocked: list[int]
    ) -> Sequence[tuple[Any, ...]]:
        if kind == "complete":
            done = await self.complete(session, [item.guard for item in group], [])
            blocked += done.blocked
            return [(job_id, True) for job_id in done.written]
        if kind == "wait_deduplicated":
            return await self._wait_deduplicated(session, group, blocked)
        return await self._checkout.search(
            _SETTLE[kind], columns(kind, group) | {"session": session}
        )

    async def _wait_deduplicated(
        self, session: int, group: Sequence[Settlement], blocked: list[int]
    ) -> Sequence[tuple[Any, ...]]:
        """Together; one by one where one of them has to wait for a transaction that is enqueueing the same job."""
        kind = "wait_deduplicated"

        async def write(items: Sequence[Settlement], patience: str) -> Sequence[tuple[Any, ...]]:
            params = columns(kind, items) | {"session": session}
            return await self._checkout.search(_SETTLE[kind], params, lock_timeout=patience)

        try:
            return await write(group, _PATIENCE)
        except StorageUnavailableError as error:
            if not is_locked(error):
                raise
        rows: list[tuple[Any, ...]] = []
        for item in group:
            try:
                rows += await write([item], _EACH)
                failpoints.hit("settled alone")
            except StorageUnavailableError as error:
                if not is_locked(error):
                    raise
                blocked.append(item.guard.id)
        return rows
