"""One run, from the first request to the last job."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from psycopg_pool import AsyncConnectionPool

from .database import Records
from .display import Display
from .fleet import Fleet
from .ledger import Accounts, Ledger
from .options import Options
from .produce import PLAYERS, Producer

__all__ = ["INTERRUPTION", "Result", "play"]

#: What ends a game by Ctrl-C or SIGTERM.
INTERRUPTION = "an interruption"

#: Seconds between looks at the database, unless a look takes long.
LOOK_EVERY = 0.2


@dataclass(frozen=True, slots=True)
class Result:
    """How a run of `seconds` went. `ended_by` names what ended it before all jobs were done."""

    accounts: Accounts
    seconds: float
    ended_by: str
    failed: bool
    killed: int


async def play(dsn: str, options: Options, display: Display) -> Result:
    """Play the game on the database `dsn`."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, max_size=PLAYERS, open=False) as pool,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        records = await Records.begin(conn)
        game = Game(dsn, options, pool, records, display)
        with _on_signals(game.interrupt):
            return await game.run()


class Game:
    """The players, the runners, and somebody who watches them."""

    def __init__(
        self,
        dsn: str,
        options: Options,
        pool: AsyncConnectionPool,
        records: Records,
        display: Display,
    ) -> None:
        self._duration = options.duration
        self._records = records
        self._display = display
        self._ledger = Ledger()
        self._producer = Producer(pool, options, self._ledger)
        self._fleet = Fleet(dsn, options, [self._ledger.hear, display.hear], display.say)
        self._interrupted = asyncio.Event()

    def interrupt(self) -> None:
        """End the game; the second time, don't let running jobs finish either."""
        if self._interrupted.is_set():
            self._fleet.terminate()
        self._interrupted.set()

    async def run(self) -> Result:
        """Let the players play until all jobs are done, or the game is ended."""
        begun = time.monotonic()
        await self._fleet.start()
        try:
            async with asyncio.TaskGroup() as group:
                producing = group.create_task(self._producer.run())
                ended_by = await self._watch(producing)
                self._producer.stop()
            seconds = time.monotonic() - begun
        finally:
            await self._fleet.stop()
        fates, badges = await self._records.fates(), await self._records.badges()
        accounts = self._ledger.settle(fates, badges, seconds)
        failed, killed = bool(self._fleet.trouble), self._fleet.killed
        return Result(accounts, seconds, ended_by, failed, killed)

    async def _watch(self, producing: asyncio.Task[None]) -> str:
        """Look at the database until no job is left; return what ended the game before that."""
        end = time.monotonic() + self._duration
        while True:
            all_asked, before = producing.done(), time.monotonic()
            tally = await self._records.tally()
            self._display.show(self._ledger.enqueued, tally, self._ledger.rescued())
            if all_asked and not any(line.fate == "waiting" for line in tally):
                return ""
            if self._fleet.trouble:
                return self._fleet.trouble
            now = time.monotonic()
            if now >= end:
                return "--duration"
            with suppress(TimeoutError):
                async with asyncio.timeout(min(max(LOOK_EVERY, 20 * (now - before)), end - now)):
                    await self._interrupted.wait()
                    return INTERRUPTION


@contextmanager
def _on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call on Ctrl-C and SIGTERM."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    with suppress(NotImplementedError):  # Windows
        for number in numbers:
            loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in numbers:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
