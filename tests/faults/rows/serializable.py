"""Row 13: a database where every transaction is SERIALIZABLE unless it says otherwise."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import Kills, effects_once, started_again, swept_away
from tests.faults.rows.deduplication import last_starts
from tests.helpers.fault_jobs import EFFECTS
from tests.helpers.history import Event, History, saying
from tests.helpers.processes import Crew
from tests.helpers.role_users import dropped_roles, login, user_url
from tests.helpers.runners import eventually, left
from tests.helpers.server import connection_url

_TYPES, _WORKERS, _PRODUCERS = "brief,effect,effect_in_thread,unique", 10, 4
#: Of all jobs, so that deduplicated ones meet others like them.
_KEYS = 200
_PATIENCE = 120.0
#: As in row 1.
_WITHIN = 3.0
_SETTING = "default_transaction_isolation"
#: Writes down which of the runners' statements are not READ COMMITTED. A producer only inserts; a transactional job's own
#: transaction, in which its row is removed beside settings of this name, is what its user has asked for.
_WATCH = """
CREATE TABLE stricter (isolation text NOT NULL, query text NOT NULL);
CREATE FUNCTION watch_isolation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' AND current_query() NOT LIKE '%workers.job_role%' THEN
        INSERT INTO stricter VALUES (current_setting('transaction_isolation'), current_query());
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER watch_isolation AFTER UPDATE OR DELETE ON background_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION watch_isolation();
"""


@row(
    "13",
    "default_transaction_isolation serializable",
    "by ALTER ROLE, and by options of the DSN; as row 1, with producers that repeat what is refused with 40001: lost 0, "
    "transactional effects exactly once, jobs of a killed worker start again within 3 s, runners stay READ COMMITTED",
)
def serializable(bench: Bench) -> Found:
    # of each way; of deduplicated ones, a quarter, not all get in
    jobs, kills = bench.pick(full=(12_800, 100), quick=(800, 4), tiny=(160, 1))
    found = Found(injected=0, jobs=0)
    for way in bench.pick(
        full=(_by_role, _by_options), quick=(_by_role, _by_options), tiny=(_by_role,)
    ):
        with (
            bench.database() as plain,
            way(bench, plain) as url,
            psycopg.connect(url, autocommit=True) as conn,
            bench.history() as history,
            bench.workers(url, history) as workers,
        ):
            default = conn.execute(f"SHOW {_SETTING}".encode()).fetchone()
            found.expect(default == ("serializable",), f"the default is {default}")
            conn.execute(f"{EFFECTS}; {_WATCH}".encode())
            _once(bench, found, (conn, history, workers), jobs, kills)
    return found


@contextlib.contextmanager
def _by_role(bench: Bench, url: str) -> Iterator[str]:
    """For a user of its own."""
    with psycopg.connect(bench.dsn, autocommit=True) as admin, dropped_roles(admin) as prefix:
        name = f"{prefix}_strict"
        login(admin, name, rights="SUPERUSER")
        command = f"ALTER ROLE {{}} SET {_SETTING} = 'serializable'"
        admin.execute(sql.SQL(command).format(sql.Identifier(name)))
        yield user_url(url, name)


@contextlib.contextmanager
def _by_options(bench: Bench, url: str) -> Iterator[str]:
    yield connection_url(url, options=f"-c{_SETTING}=serializable")


def _once(
    bench: Bench,
    found: Found,
    stage: tuple[psycopg.Connection[Any], History, Crew],
    jobs: int,
    kills: int,
) -> None:
    conn, history, workers = stage
    members = [workers.start(_TYPES, workers=_WORKERS) for _ in range(4)]
    for member in members:
        member.ready()
    killed = Kills()
    options = {"plan": "serializable", "turns": jobs // _PRODUCERS // 10, "keys": _KEYS}
    producers = [workers.start_producer(_TYPES, **options) for _ in range(_PRODUCERS)]
    for number in range(1, kills + 1):
        # all the way through; a fifth are not enqueued or superseded, and start nothing
        some = number * jobs * 3 // (4 * (kills + 1))
        history.wait_for("start", count=some, seconds=_PATIENCE)
        victim = members.pop(bench.chance.randrange(len(members)))
        killed.kill(victim, conn, history)
        members.append(workers.start(_TYPES, workers=_WORKERS))
    for producer in producers:
        found.expect(producer.wait(_PATIENCE) == 0, f"{producer.name} did not end well")
    eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    for member in members:
        member.ready()
        member.send(signal.SIGTERM)
        found.expect(member.wait() == 0, f"{member.name} did not end well")

    events, acked = history.events(), history.events("ok")
    gave_way = _gave_way(events, acked)
    # a job's own transaction is serializable: one that ran, and could not be committed, runs again
    undone = history.events("log", where=saying("could not serialize access"))
    verdict = history.check(explained=gave_way)
    found.judge(verdict, duplicates=kills * 2 * _WORKERS + len(undone))
    plain = {event.job for event in acked if not event.text.startswith("effect")}
    again = plain.intersection(verdict.repeated)
    found.expect(not again, f"finished by the living, and again: {sorted(again)[:10]}")
    started_again(found, events, killed, within=_WITHIN * bench.margin)
    effects_once(found, conn, [event.job for event in acked if event.text.startswith("effect")])
    stricter = conn.execute(
        "SELECT isolation, left(query, 200), count(*) FROM stricter GROUP BY 1, 2"
    ).fetchall()
    found.expect(not stricter, f"not READ COMMITTED: {stricter[:5]}")
    repeated = len(history.events("fail"))
    found.expect(repeated > 0, "no enqueue was ever refused with 40001")
    found.injected += kills + repeated
    found.jobs += len(acked)
    swept_away(found, conn, workers, _TYPES)


def _gave_way(events: list[Event], acked: list[Event]) -> set[int]:
    """The deduplicated jobs after whose last sign of life an identical one ran. (Who removed them may have been killed
    before it could say so; and when somebody says so, that identical one may have run already.)"""
    last = last_starts(events)
    told = [event for event in acked if event.text.startswith("unique")]
    keys = {event.job: event.text.split()[1] for event in told}
    seen = {event.job: event.since for event in told}
    for event in events:
        if event.job in seen and event.what in ("start", "end", "broken"):
            seen[event.job] = max(seen[event.job], event.at)
    return {job for job, at in seen.items() if last[keys[job]] > at}
