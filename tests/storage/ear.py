"""A listener that is asked for one message after the other."""

from __future__ import annotations

import asyncio

import anyio

from workers.storage.base import Listener, Wake

__all__ = ["LONG", "Ear"]

#: Seconds; a wake-up takes milliseconds.
LONG = 30.0


class Ear:
    """Keeps what `listener` hears until it is asked for. Raises what ends the listening, EOFError if nothing does."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._messages: asyncio.Queue[Wake | None] = asyncio.Queue()
        self._listening: asyncio.Task[None] | None = None

    async def hear(self) -> Wake | None:
        if self._listening is None:
            self._listening = asyncio.create_task(self.listener.listen(self._messages.put_nowait))
        message = asyncio.create_task(self._messages.get())
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait([message, self._listening], timeout=LONG, return_when=first)
        if not message.done():
            message.cancel()
            with anyio.fail_after(LONG):
                await self._listening
            raise EOFError
        return message.result()

    async def where(self) -> tuple[str, int]:
        wake = await self.hear()
        assert wake is not None
        return wake.queue, wake.priority
