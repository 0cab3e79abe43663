"""This library, for the harness that measures its peers: runs there, copied beside the other adapters; see peers.py.

With default settings, but for num_workers, which is PEERS_CONC.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

# the harness's own module, beside which this one is copied
from common import CONC, PG, Adapter, lat_tick, run_async, tick  # type: ignore[import-not-found]

from workers import BackgroundJob, Runner, migrate


class Noop(BackgroundJob[None]):
    """Counts."""

    i: int

    async def run(self, ctx: None) -> None:
        tick(self.i)


class Lat(BackgroundJob[None]):
    """Says how long after `t` it started."""

    i: int
    t: float

    async def run(self, ctx: None) -> None:
        lat_tick(self.i, self.t)


class Sleep10(BackgroundJob[None]):
    """Sleeps 10 ms."""

    i: int

    async def run(self, ctx: None) -> None:
        await asyncio.sleep(0.01)
        tick(self.i)


JOBS: dict[str, Any] = {"noop": Noop, "lat": Lat, "sleep10": Sleep10}


class WorkersAdapter(Adapter):  # type: ignore[misc]  # its type is the harness's
    """See the harness's common.Adapter."""

    dist = "workers-pg"

    async def setup(self) -> None:
        await asyncio.to_thread(migrate, PG)

    async def open(self) -> None:
        self.conn = await psycopg.AsyncConnection.connect(PG, autocommit=True)

    async def close(self) -> None:
        await self.conn.close()

    async def enqueue(self, job: str, kw: dict[str, Any]) -> None:
        await JOBS[job](**kw).enqueue(self.conn)

    async def enqueue_bulk(self, job: str, kws: list[dict[str, Any]]) -> None:
        await JOBS[job].enqueue_batch(self.conn, [JOBS[job](**kw) for kw in kws])

    def worker(self) -> None:
        async def go() -> None:
            runner = Runner(PG, None)
            for job_type in JOBS.values():
                runner.register_job_type(job_type)
            await runner.configure_default_queue(num_workers=CONC).run()

        run_async(go())


adapter = WorkersAdapter()
