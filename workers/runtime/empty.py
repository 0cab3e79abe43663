"""`shutdown_when_queue_empty`: how a runner knows that there is nothing left for it to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import anyio

from ..errors import StorageError
from .claimer import Claimer
from .completer import Completer
from .ledger import Ledger
from .session import SessionKeeper

__all__ = ["EmptyWatch"]

_LOOK_EVERY = 0.02


class EmptyWatch:
    """Nothing is claimable and nothing runs here. Other runners' jobs, and those that wait for a time, do not count."""

    def __init__(
        self,
        keeper: SessionKeeper,
        ledger: Ledger,
        completer: Completer,
        claimers: Mapping[str, Claimer],
    ) -> None:
        self._keeper = keeper
        self._ledger = ledger
        self._completer = completer
        self._claimers = claimers

    async def run(self, shutdown: Callable[[], object]) -> None:
        """Call `shutdown` once, when it is empty."""
        while True:
            claims = self._ledger.claims
            if (
                not self._ledger
                and self._completer.idle
                # between two batches nothing is held either, and a thorough look is not cheap
                and all(claimer.sated for claimer in self._claimers.values())
                and await self._is_empty()
                and claims == self._ledger.claims
            ):
                shutdown()
                return
            await anyio.sleep(_LOOK_EVERY)

    async def _is_empty(self) -> bool:
        """A thorough look: what is due is staged first, then every queue is scanned whole."""
        try:
            found = await asyncio.wrap_future(self._keeper.maintain_now())
        except StorageError:
            return False
        if not found.alive or found.wakes or found.suspects or found.rescue:
            return False
        for claimer in self._claimers.values():
            if await claimer.claim(1, thorough=True) != 0:
                return False
        return True
