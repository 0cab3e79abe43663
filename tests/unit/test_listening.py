"""Who is called deaf: a listener that did not hear a probe in time, and not one whose loop had no time for it. Rule 27."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from workers.runtime import listening
from workers.runtime.listening import Listening
from workers.storage.base import Wake

WITHIN = 0.2


class Ear:
    """A listener whose probe is answered by `answer`."""

    address = "here"

    def __init__(self) -> None:
        self.opened = 0
        self._answers: asyncio.Queue[None] = asyncio.Queue()

    async def open(self) -> None:
        self.opened += 1

    async def close(self) -> None: ...

    async def listen(self, heard: Callable[[Wake | None], None]) -> None:
        while True:
            await self._answers.get()
            heard(None)

    def answer(self) -> None:
        self._answers.put_nowait(None)


@pytest.mark.parametrize("stands_still", [True, False])
async def test_only_who_had_time_to_hear_is_deaf(
    monkeypatch: pytest.MonkeyPatch, stands_still: bool
) -> None:
    """The answer that came while the loop stood still is read after the timers that have run out meanwhile."""
    monkeypatch.setattr(listening, "_HEARD_WITHIN", WITHIN)
    monkeypatch.setattr(listening, "_RETRY_FIRST", 0.0)
    ear = Ear()
    listener = Listening(lambda: cast(Any, ear), lambda wake: None, lambda address: None)
    task = asyncio.create_task(listener.run(1))
    await asyncio.sleep(0.01)
    listener.probed(time.monotonic())
    if stands_still:
        time.sleep(2 * WITHIN)  # noqa: ASYNC251 - that is the point
        # as when a selector reports it: behind the timers of the same turn
        asyncio.get_running_loop().call_later(0, ear.answer)
    await asyncio.sleep(3 * WITHIN)
    task.cancel()
    assert ear.opened == (1 if stands_still else 2)
