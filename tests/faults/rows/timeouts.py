"""Row 11: a database whose timeouts are made for web requests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from tests.faults.harness import Bench, Found, Scale, row
from tests.faults.judging import end_all, judge_survivors, swept_away
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread
from tests.helpers.history import History, by
from tests.helpers.processes import Crew
from tests.helpers.producers import Producer, producing
from tests.helpers.role_users import dropped_roles, login, user_url
from tests.helpers.runners import eventually, left
from tests.helpers.server import connection_url

_TYPES, _WORKERS, _RUNNERS = "brief,effect,effect_in_thread", 8, 2
_TIMEOUTS = (
    "lock_timeout",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
)
#: Of these a blocked statement dies, however much more the runner allows it than they do.
_OF_STATEMENTS = ("lock_timeout", "statement_timeout")
_MOST = "200ms"
#: Longer than that: what a job does to its transaction meanwhile is nothing.
_LONG = 0.3
#: Long enough for their rows to be locked while they run.
_LOCKABLE = 0.8
_MOST_BLOCKED = 6
#: How they are locked: a completion waits for any of them.
_LOCKS = ("UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE")
#: Seconds until a completion is written that has waited for a lock, from when that is free; it is tried every 2 s.
_WITHIN = 3.0
_PATIENCE = 60.0

_WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND query LIKE '%%workers_complete%%' AND pid <> pg_backend_pid()
"""


@row(
    "11",
    "lock, statement, idle timeouts",
    "each 200 ms, by ALTER ROLE and by the DSN, and all of them, under load: lost 0, no job is begun again, a completion "
    "that a lock keeps out is tried again until it is written, within 3 s",
)
def short_timeouts(bench: Bench) -> Found:
    rounds = bench.pick(full=3, quick=1, tiny=1)
    each: list[tuple[str, ...]] = [(name,) for name in _TIMEOUTS]
    every: list[tuple[str, ...]] = [_TIMEOUTS]
    cases = bench.pick(full=[*each, *each, *every, *every], quick=each + every, tiny=every)
    found = Found(injected=0, jobs=0)
    # the second four the other way round
    ways = [(names, (n + n // len(each)) % 2 == 0) for n, names in enumerate(cases)]
    bench.chance.shuffle(ways)
    for names, by_role in ways:
        with (
            bench.stage() as (url, conn, history, workers),
            (_by_role if by_role else _by_dsn)(conn, url, names) as hurried,
        ):
            _one_case(bench, found, (conn, history, workers, hurried), names, rounds)
    return found


@contextlib.contextmanager
def _by_role(conn: psycopg.Connection[Any], url: str, names: tuple[str, ...]) -> Iterator[str]:
    with dropped_roles(conn) as prefix:
        name = f"{prefix}_hurried"
        login(conn, name, rights="SUPERUSER")
        for each in names:
            query = sql.SQL("ALTER ROLE {} SET {} = {}")
            conn.execute(query.format(sql.Identifier(name), sql.Identifier(each), _MOST))
        yield user_url(url, name)


@contextlib.contextmanager
def _by_dsn(conn: psycopg.Connection[Any], url: str, names: tuple[str, ...]) -> Iterator[str]:
    yield connection_url(url, options=" ".join(f"-c{name}={_MOST}" for name in names))


def _one_case(
    bench: Bench,
    found: Found,
    stage: tuple[psycopg.Connection[Any], History, Crew, str],
    names: tuple[str, ...],
    rounds: int,
) -> None:
    """Some rounds of load, and of idleness, under these timeouts."""
    conn, history, workers, url = stage
    conn.execute(EFFECTS)
    members = [workers.start(_TYPES, workers=_WORKERS, database_url=url) for _ in range(_RUNNERS)]
    sessions = {member.ready() for member in members}
    producers: list[Producer] = []
    ids: list[int | None] = []
    # of a statement that the runner allows seconds, not to be waited for in the tests
    dies = bench.scale is not Scale.TINY and bool(set(names) & set(_OF_STATEMENTS))
    for _ in range(rounds):
        with (
            producing(workers, Brief, producers=1, url=url) as brief,
            producing(workers, Effect, EffectInThread, producers=1, seconds=_LONG, url=url) as long,
        ):
            producers += brief + long
            within, plain = _WITHIN * bench.margin, workers.database_url
            ids += _blocked(bench, found, conn, history, plain, dies=dies, within=within)
            found.injected += 1
        eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
        conn.execute("SELECT pg_sleep(0.5)")  # every connection is idle for too long
    end_all(found, workers)
    judge_survivors(found, conn, history, producers, ids, sessions=sessions)
    swept_away(found, conn, workers, _TYPES)


def _blocked(
    bench: Bench,
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    url: str,
    *,
    dies: bool,
    within: float,
) -> list[int | None]:
    """Jobs whose rows somebody locks while they run, until their completion waits; `dies`: until it was broken off."""
    number, lock = bench.chance.randrange(1, _MOST_BLOCKED + 1), bench.chance.choice(_LOCKS)
    jobs = [Brief(key=key, seconds=_LOCKABLE) for key in range(number)]
    with psycopg.connect(url) as blocker:
        ids = Brief.enqueue_batch(conn, jobs)
        starts = history.wait_for("start", count=number, where=lambda event: event.job in ids)
        rows = f"SELECT FROM background_jobs WHERE id = ANY(%s) FOR {lock}"
        blocker.execute(rows.encode(), [ids])
        began = time.monotonic()
        history.wait_for("end", count=number, where=lambda event: event.job in ids)
        eventually(lambda: conn.execute(_WAITING, []).fetchone() != (0,))
        seen = time.monotonic()
        for name in {event.process for event in starts}:  # they go on with others
            mine = by(name)
            history.wait_for("start", where=lambda event: mine(event) and event.at > seen)  # noqa: B023
        if dies:
            # where the server's own timeout comes before ours, the statement is broken off
            said = ("can't be written now", "wait for whoever has locked their rows")
            history.wait_for(
                "log",
                where=lambda event: event.at > began and any(text in event.text for text in said),
            )
    freed = time.monotonic()
    rows = "SELECT count(*) FROM background_jobs WHERE id = ANY(%s)"
    eventually(lambda: conn.execute(rows, [ids]).fetchone() == (0,), _PATIENCE)
    found.recovered(time.monotonic() - freed, within=within)
    return ids
