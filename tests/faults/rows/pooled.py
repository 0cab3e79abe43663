"""Row 19: PgBouncer between the runners and the server."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import psycopg

from tests.faults.harness import Bench, CannotRunError, Found, Scale, row, warm
from tests.faults.judging import Kills, effects_once, started_again, swept_away
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, Flaky, Stage
from tests.helpers.history import Event, History, by, saying
from tests.helpers.pooler import NoPoolerError, pooler, pooler_version
from tests.helpers.processes import Crew
from tests.helpers.runners import eventually, hosted, left
from workers import migrate
from workers.errors import ConfigurationError

_KINDS: tuple[Any, ...] = (Brief, Effect, Flaky)
_TYPES, _WORKERS, _LEASE = "brief,effect,flaky", 4, 2.0
#: Its lease, a look at it by another one, and a poll.
_WITHIN = _LEASE + 2.0
#: What a runner changes for itself must not be what the next user of a server connection finds.
_LEAKS = """
SELECT name, setting FROM pg_settings
WHERE source = 'session' AND name NOT IN ('client_encoding', 'DateStyle', 'TimeZone', 'application_name',
    'standard_conforming_strings')
"""
_BY_LOCK = "SELECT name FROM worker_sessions WHERE alive AND NOT lease_only"
#: What is wrong, and the two ways out.
_SAID = (
    "the pooler refuses transactions",
    "set its mode to transaction",
    "connect to the server itself",
)
_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@row(
    "19",
    "PgBouncer in transaction mode",
    "runners through it and one beside it, those killed again and again: named in the log, polling only, judged "
    "by their leases alone, lost 0, transactional effects exactly once, jobs of a killed one start again within its lease "
    "and 2 s, no setting or lock is left to others; in statement mode an error that says what to change",
)
def through_a_pooler(bench: Bench) -> Found:
    jobs, kills = bench.pick(full=(10_000, 30), quick=(1_000, 4), tiny=(150, 1))
    found = Found(injected=kills, jobs=0)
    with bench.server() as server, bench.history() as history:
        migrate(server.dsn)
        if (
            bench.scale is not Scale.TINY
        ):  # the one beside is to have every reason to judge by locks
            warm(server.dsn)
        try:
            version = pooler_version()
            history.add(Event(what="log", process="pooler", text=version))
            print(version, file=sys.stderr)
            with (
                pooler(server, size=8) as dsn,
                bench.workers(dsn, history) as workers,
                psycopg.connect(server.dsn, autocommit=True) as conn,
                # but for who wrote what: a pooler takes no options
                bench.audited(server.dsn, "public"),
            ):
                conn.execute(EFFECTS)
                ids = _enqueued(dsn, jobs // len(_KINDS))
                found.jobs = sum(map(len, ids.values()))
                _worked(bench, found, (conn, history, workers, server.dsn), ids, kills)
                _nothing_leaked(found, dsn, conn)
                swept_away(found, conn, workers, _TYPES)
            with pooler(server, mode="statement") as dsn, bench.workers(dsn, history) as workers:
                refused = workers.start(_TYPES)
                found.expect(refused.wait() != 0, "it works in statement mode")
                said = asyncio.run(_told(dsn, history))
                found.expect(all(part in said for part in _SAID), f"in statement mode: {said}")
        except NoPoolerError as error:
            raise CannotRunError(str(error)) from error
    return found


async def _told(dsn: str, history: History) -> str:
    """What somebody is told whose runner can't work there."""
    try:
        async with hosted(dsn, Stage("here", history.add), Brief):
            return "nothing"
    except ConfigurationError as error:
        return str(error)


def _enqueued(dsn: str, n: int) -> dict[type, list[int | None]]:
    """Through the pooler, in batches and one by one."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as producer:
        ids = {
            kind: kind.enqueue_batch(producer, [kind(key=key, seconds=0.02) for key in range(n)])
            for kind in _KINDS
        }
        for kind in _KINDS:
            ids[kind] += [kind(key=n + key, seconds=0.02).enqueue(producer) for key in range(10)]
    return ids


def _worked(
    bench: Bench,
    found: Found,
    stage: tuple[psycopg.Connection[Any], History, Crew, str],
    ids: dict[type, list[int | None]],
    kills: int,
) -> None:
    conn, history, workers, direct = stage
    beside = workers.start(_TYPES, workers=_WORKERS, lease=_LEASE, database_url=direct)
    members = [workers.start(_TYPES, workers=_WORKERS, lease=_LEASE) for _ in range(3)]
    for member in (beside, *members):
        member.ready()
    by_lock = conn.execute(_BY_LOCK).fetchall()
    found.expect(by_lock == [(beside.name,)], f"judged by their locks: {by_lock}")
    everything = [job for each in ids.values() for job in each]
    killed = Kills()
    for number in range(1, kills + 1):
        # not starts: of jobs that fail the first time there are thousands in a second
        history.wait_for("end", count=number * len(everything) // (kills + 1), seconds=120)
        victim = members.pop(bench.chance.randrange(len(members)))
        history.wait_for("start", where=by(victim.name))
        killed.kill(victim, conn, history)
        members.append(workers.start(_TYPES, workers=_WORKERS, lease=_LEASE))
    eventually(lambda: left(conn)["background_jobs"] == 0, 120)
    for member in (beside, *members):
        member.ready()
        member.send(signal.SIGTERM)
        found.expect(member.wait() == 0, f"{member.name} did not end well")
    for name in (*killed.times, *(member.name for member in members)):
        told = history.events("log", where=saying("through a pooler", name))
        found.expect(bool(told), f"{name} did not say that there is a pooler")
    found.expect(not history.events("session lost"), "a living runner lost its session")
    events = history.events()
    found.judge(history.check(everything), duplicates=kills * 2 * _WORKERS, by_kills=True)
    started_again(found, events, killed, within=_WITHIN * bench.margin)
    effects_once(found, conn, ids[Effect])


def _nothing_leaked(found: Found, dsn: str, conn: psycopg.Connection[Any]) -> None:
    """On the server connections that the pooler has: as many clients at once as it has of them."""
    links = [psycopg.connect(dsn, prepare_threshold=None) for _ in range(8)]
    try:
        leaks = {leak for link in links for leak in link.execute(_LEAKS.encode()).fetchall()}
        found.expect(not leaks, f"settings that are left to others: {sorted(leaks)}")
    finally:
        for link in links:
            link.close()
    found.expect(
        conn.execute(_LOCKS).fetchone() == (0,), "advisory locks are left on server connections"
    )
