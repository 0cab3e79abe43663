"""Keeps the listener open. Without it the runner polls, so whatever goes wrong here is logged and tried again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import anyio

from .. import telemetry
from ..errors import StorageError
from ..storage.base import Listener, Wake

__all__ = ["Listening"]

logger = logging.getLogger("workers")

#: A probe that has not come back by then was not heard.
_HEARD_WITHIN = 10.0
_RETRY_FIRST, _RETRY_MOST = 0.5, 10.0


class Listening:
    """Passes wake-ups on to `wake`."""

    def __init__(
        self,
        open_listener: Callable[[], Listener | None],
        wake: Callable[[Wake], None],
        announce: Callable[[str | None], None],
    ) -> None:
        self._open_listener = open_listener
        self._wake = wake
        self._announce = announce
        self._heard_at = 0.0
        self._hearing = anyio.CancelScope()
        self._failing = False
        self._session = 0

    async def run(self, session: int) -> None:
        """Listen until cancelled."""
        self._session = session
        delay = _RETRY_FIRST
        while True:
            listener = self._open_listener()
            if listener is None:
                return
            try:
                await listener.open()
                self._restored(listener)
                delay = _RETRY_FIRST
                reason = await self._listen(listener)
            except (StorageError, OSError) as error:
                reason = str(error)
            finally:
                self._announce(None)
                with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
                    await listener.close()
            self._lost(reason)
            await anyio.sleep(delay)
            delay = min(_RETRY_MOST, delay * 2)

    async def _listen(self, listener: Listener) -> str:
        """Until the stream ends or turns out to be deaf; says why."""
        with anyio.CancelScope() as self._hearing:
            await listener.listen(self._heard)
            return "the connection ended"
        return "notifications do not arrive"

    def _heard(self, wake: Wake | None) -> None:
        self._heard_at = time.monotonic()
        if wake is not None:
            self._wake(wake)

    def probed(self, at: float) -> None:
        """A probe was sent, after `at` by the monotonic clock: it must be heard, unless it was already."""
        # in two steps: after a loop that stood still the timer would come before the answer, which lies there already
        later = asyncio.get_running_loop().call_later
        later(_HEARD_WITHIN / 2, later, _HEARD_WITHIN / 2, self._check, at)

    def _check(self, since: float) -> None:
        if self._heard_at < since:
            self._hearing.cancel()

    def _restored(self, listener: Listener) -> None:
        self._heard_at = time.monotonic()
        self._announce(listener.address)
        # what was announced while nobody listened
        self._wake(Wake(unheard=True))
        if self._failing:
            self._failing = False
            logger.info("listening for notifications again")
        telemetry.emit(telemetry.ListenerStateChanged(session=self._session, listening=True))

    def _lost(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            logger.warning("polling only: %s", reason)
        telemetry.emit(telemetry.ListenerStateChanged(session=self._session, listening=False))
