"""Row 12: several writers of the same outcomes at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.storage.engines import PostgresEngine, Runner, mails
from workers.errors import StorageError
from workers.job import ClaimedJob
from workers.lifecycle import Archive, Bury, Delete, Release, Retry, Transition, Wait

_ENDS: tuple[Transition, ...] = (
    Delete(),
    Archive("completed"),
    Bury("enough"),
    Retry(60, "boom"),
    Wait(60),
    Release(),
)
_KIND, _WRITERS = 50, 4
_TABLES = "background_jobs, dead_jobs, archived_jobs, worker_claims"


@row(
    "12",
    "overlapping bulk completions",
    "two sessions, two writers each, ids of both in any order, all kinds of ends, deduplicated jobs among them: no deadlock "
    "on the server, no error; each job is written once, by its own session",
)
def overlapping(bench: Bench) -> Found:
    rounds = bench.pick(full=300, quick=20, tiny=3)
    found = Found(injected=0, jobs=0)
    with bench.database() as url:
        before = _deadlocks(url)
        asyncio.run(_all_rounds(bench, found, url, rounds))
        # counted when the connections are closed
        found.expect(_deadlocks(url) == before, f"{_deadlocks(url) - before} deadlocks")
    return found


async def _all_rounds(bench: Bench, found: Found, url: str, rounds: int) -> None:
    async with PostgresEngine.opened(url, max_size=2 * _WRITERS) as engine:
        runners = engine.runner("one"), engine.runner("two")
        for _ in range(rounds):
            engine.conn.execute(f"TRUNCATE {_TABLES}".encode())
            await engine.storage.enqueue(mails(2 * _KIND))
            await engine.storage.enqueue(mails(2 * _KIND, deduplicated=True, priority=1))
            jobs: list[ClaimedJob] = []
            owners: dict[int, Runner] = {}
            for runner in runners:
                taken = [*await runner.take(_KIND), *await runner.take(_KIND)]
                jobs += taken
                owners |= {job.id: runner for job in taken}
            found.expect(len(jobs) == 4 * _KIND, f"only {len(jobs)} jobs were claimed")
            writers = [
                _Writer(runner, bench.chance.random()) for runner in runners * (_WRITERS // 2)
            ]
            await asyncio.gather(*(writer.work(jobs) for writer in writers))
            written = Counter[int]()
            for writer in writers:
                found.expect(not writer.errors, f"errors: {writer.errors[:3]}")
                others = [job for job in writer.written if owners[job] is not writer.runner]
                found.stale_accepted += len(others)
                written += writer.written
            twice = [job for job, times in written.items() if times > 1]
            found.expect(not twice, f"written twice: {twice[:10]}")
            found.lost += len(jobs) - len(written)
            found.injected += 1
            found.jobs += len(jobs)


class _Writer:
    """Ends jobs, its session's and others', in batches of its own choice."""

    def __init__(self, runner: Runner, seed: float) -> None:
        self.runner = runner
        self.written = Counter[int]()
        self.errors: list[str] = []
        self._chance = random.Random(seed)

    async def work(self, jobs: list[ClaimedJob]) -> None:
        """Some of them, again and again, and all of them in the end."""
        for size in (*[len(jobs) // 4 * 3] * 3, len(jobs)):
            some = self._chance.sample(jobs, size)
            plain, rest = some[: size // 3], some[size // 3 :]
            try:
                self.written.update(await self.runner.complete(plain))
                ends = self._chance.choices(_ENDS, k=len(rest))
                settled = await self.runner.settle(rest, *ends)
                self.written.update([*settled.written, *settled.superseded])
            except StorageError as error:
                self.errors.append(str(error))


def _deadlocks(url: str) -> int:
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    with psycopg.connect(url) as conn:
        row = conn.execute(query).fetchone()
    assert row is not None
    return int(row[0])
