"""The PostgreSQL engine. What the statements do, and why, stands in queries/*.sql."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from ... import failpoints
from ...errors import ConfigurationError, MigrationError, StorageUnavailableError
from ...job import JobRecord, JobState, NewJob
from ...lifecycle import Release
from ...migrations import VERSIONS, check_not_older
from ..base import (
    Capabilities,
    Claimed,
    ClaimRequest,
    Control,
    Guard,
    Listener,
    QueueStats,
    Settled,
    Settlement,
    SyncTransactionalRun,
    TransactionalRun,
    Wake,
)
from .checkout import Checkout, translated
from .claim_link import ClaimLink
from .claiming import Claims
from .connector import Connector, with_defaults
from .control_link import ControlLink
from .fitting import fetch_on
from .lender import AnyPool, Lender, users
from .listener import PostgresListener
from .outcomes import Outcomes
from .producing import enqueue
from .reading import JobReader
from .requeueing import requeue
from .room import connected, connected_async
from .session import PostgresControl
from .settling import settled
from .statements import statement
from .transactions import TransactionConnections

__all__ = ["PostgresStorage"]

_HELD_IDS = statement("held_ids")
#: Whether the tables are there, and whether it can be seen which migrations were applied to them.
_LOOK = """\
SELECT
    to_regclass('background_jobs') IS NOT NULL,
    EXISTS (
        SELECT FROM pg_class AS jobs JOIN pg_class AS migrations USING (relnamespace)
        WHERE jobs.oid = to_regclass('background_jobs') AND migrations.oid = to_regclass('workers_migrations')
            AND has_table_privilege(migrations.oid, 'SELECT')
    ),
    current_setting('server_encoding')"""


class PostgresStorage:
    """Jobs in PostgreSQL, through a psycopg pool or a DSN.

    An open pool is left open; an unopened one, or one made from a DSN, is opened, and closed by the last who uses it.
    """

    capabilities = Capabilities(transactional=True, listener=True)

    def __init__(
        self,
        target: AsyncConnectionPool[Any] | str,
        *,
        listen: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(target, str):
            target = AsyncConnectionPool(
                target,
                kwargs=with_defaults(target, {}),
                min_size=1,
                max_size=4,
                open=False,
                name="workers",
            )
        self._pool: AnyPool = target
        connector = self._connector = Connector(
            self._pool, lambda: self._checkout.search_path, lambda: self._checkout.pooled
        )
        self._lender = Lender(
            self._pool, connector.connect_async, lambda: self._transactions.make_room()
        )
        checkout = self._checkout = Checkout(self._lender)
        self._reader = JobReader(checkout)
        self._outcomes = Outcomes(checkout)
        self._claim_link = ClaimLink(connector.connect_async, checkout, clock)
        self._claims = Claims(self._claim_link, clock)
        self._opened = False
        self._listen = listen
        self._clock = (
            clock  # for scan hints and for patience with other sessions, never for what is stored
        )
        # a runner can do without the connection for claims, but not without these
        self._connect = self._claim_link.giving_way(connector.connect)
        self._connect_async = self._claim_link.giving_way_async(connector.connect_async)
        self._transactions = TransactionConnections(
            self._connect, self._connect_async, pooled=lambda: self._checkout.pooled
        )

    async def open(self) -> None:
        """Open the pool where it is not.

        Raises MigrationError when the tables are missing or older than this library, ConfigurationError when the pool was
        closed before, or a pooler refuses transactions.
        """
        self._transactions.open()
        with translated():
            if self._pool.closed:
                # a pool goes on trying for half a minute before it says what is wrong
                await (await self._connector.connect_async(bare=True)).close()
            self._opened = await users.enter(self._pool)
            if self._opened:
                await users.wait(self._pool)
        ((ready, recorded, encoding),) = await self._checkout.fetch(_LOOK, {})
        if encoding == "SQL_ASCII":
            raise ConfigurationError(
                "the database's encoding is SQL_ASCII: it takes text that is none, and one such job would keep others from "
                "being read; create it with ENCODING 'UTF8'"
            )
        if not ready:
            raise MigrationError(
                "there is no table background_jobs on the search_path; run `workers migrate` first"
            )
        if recorded:
            # or a runner might notice when it has run a job and can't write what became of it
            check_not_older(await self._checkout.fetch(VERSIONS, {}))
        if self._checkout.pooled:
            await self._check_pooler()

    async def _check_pooler(self) -> None:
        async def transaction(conn: psycopg.AsyncConnection[Any]) -> None:
            async with conn.transaction():
                await fetch_on(conn, "SELECT 1", {})

        try:
            await self._checkout.run(transaction)
        except StorageUnavailableError as error:
            raise ConfigurationError(
                f"the pooler refuses transactions: set its mode to transaction, or connect to the server itself ({error})"
            ) from error

    async def close(self) -> None:
        """Close the pool if `open` opened it."""
        await self._transactions.close()
        await self._claim_link.close()
        await self._lender.close()
        if self._opened:
            self._opened = False
            await users.leave(self._pool)

    # ---------------------------------------------------------------------------------------------------------- claiming

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Take jobs, from where the last claim ended or from the whole queue."""
        return await self._claims.take(request)

    def noticed(self, wake: Wake) -> None:
        """Look there next: something became available."""
        self._claims.noticed(wake)

    async def release_claim(self, session: int, token: int) -> Settled:
        """Give back whatever stands under `token`."""
        rows = await self._checkout.search(_HELD_IDS, {"session": session, "tokens": [token]})
        if not rows:
            return settled([])
        release = Release()
        settlements = [
            Settlement(Guard(job_id, token), deduplicated, release)
            for job_id, token, deduplicated in rows
        ]
        # the claim is not forgotten: it, or another of its scans, may land yet, and what that takes is found by it
        released = await self.settle(session, settlements, [])
        failpoints.hit("claim given back")
        return released

    # ---------------------------------------------------------------------------------------------------------- outcomes

    async def complete(
        self, session: int, guards: Sequence[Guard], closed: Collection[int]
    ) -> Settled:
        """Delete finished jobs and forget the `closed` tokens."""
        return await self._outcomes.complete(session, guards, closed)

    async def settle(
        self, session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        """Write retries, releases, archives and deaths, one statement for each kind that occurs."""
        return await self._outcomes.settle(session, settlements, closed)

    def transaction(
        self, session: int, guard: Guard
    ) -> AbstractAsyncContextManager[TransactionalRun | None]:
        """The transaction of one attempt, on a connection of its own."""
        return self._transactions.run(session, guard)

    def transaction_sync(
        self, session: int, guard: Guard
    ) -> AbstractContextManager[SyncTransactionalRun | None]:
        """The same on a synchronous connection, for a job in a thread."""
        return self._transactions.run_sync(session, guard)

    # ----------------------------------------------------------------------------------------------- producing and reading

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[int | None]:
        """Write all jobs or none; ids in order, None where an identical deduplicated job waits."""
        return await enqueue(self._checkout, jobs)

    async def stats(self) -> list[QueueStats]:
        """Counts per queue; reads the whole table."""
        return await self._reader.stats()

    async def find(self, job_id: int) -> JobRecord | None:
        """One job, wherever it stands."""
        return await self._reader.find(job_id)

    async def list_jobs(
        self, state: JobState, *, limit: int = 100, after: int = 0
    ) -> list[JobRecord]:
        """Jobs in `state` with an id above `after`, in id order."""
        return await self._reader.list_jobs(state, limit=limit, after=after)

    async def failed_jobs(self, limit: int = 10) -> tuple[int, list[int]]:
        """How many jobs are dead, or have failed and not succeeded since, and the first ids."""
        return await self._reader.failed_jobs(limit)

    async def requeue(self, job_ids: Sequence[int]) -> list[int]:
        """Give dead jobs another life; returns the ids that now wait.

        One that would have to wait for a transaction that is enqueueing an identical job stays dead, with a warning. Where
        there is one, the others go back in several transactions.
        """
        return await requeue(self._checkout, job_ids)

    # -------------------------------------------------------------------------------------------------------- the session

    def control(self) -> Control:
        """The link of the control thread, on a connection of its own."""
        connect = partial(connected, self._connect, self._transactions.make_room)
        link = ControlLink(connect, pooled=lambda: self._checkout.pooled)
        return PostgresControl(link, self._clock)

    def listener(self) -> Listener | None:
        """The LISTEN connection, or None when it was switched off, or a pooler lets nobody listen."""
        listens = self._listen and not self._checkout.pooled
        connect = partial(connected_async, self._connect_async, self._transactions.make_room)
        return PostgresListener(connect) if listens else None
