"""Row 13: a database where every transaction is SERIALIZABLE unless it says otherwise."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from psycopg import sql

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import Kills, effects_once, started_again, swept_away
from tests.faults.rows.deduplication import last_starts
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Unique
from tests.helpers.history import Event, History, saying
from tests.helpers.processes import Crew
from tests.helpers.role_users import dropped_roles, login, user_url
from tests.helpers.runners import eventually, left
from tests.helpers.server import connection_url

_TYPES, _WORKERS, _PRODUCERS = "brief,effect,effect_in_thread,unique", 10, 4
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
            _once(bench, found, (url, conn, history, workers), jobs, kills)
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
    stage: tuple[str, psycopg.Connection[Any], History, Crew],
    jobs: int,
    kills: int,
) -> None:
    url, conn, history, workers = stage
    members = [workers.start(_TYPES, workers=_WORKERS) for _ in range(4)]
    for member in members:
        member.ready()
    killed = Kills()
    with ThreadPoolExecutor(_PRODUCERS) as pool:
        producers = [_Producer(bench.chance.random()) for _ in range(_PRODUCERS)]
        asking = [pool.submit(each.work, url, jobs // _PRODUCERS) for each in producers]
        for number in range(1, kills + 1):
            # all the way through; a fifth are not enqueued or superseded, and start nothing
            some = number * jobs * 3 // (4 * (kills + 1))
            history.wait_for("start", count=some, seconds=_PATIENCE)
            victim = members.pop(bench.chance.randrange(len(members)))
            killed.kill(victim, conn, history)
            members.append(workers.start(_TYPES, workers=_WORKERS))
        for future in asking:
            future.result()
    eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    for member in members:
        member.ready()
        member.send(signal.SIGTERM)
        found.expect(member.wait() == 0, f"{member.name} did not end well")

    ids = {job: kind for each in producers for job, kind in each.ids.items()}
    events = history.events()
    gave_way = _gave_way(events, producers)
    # a job's own transaction is serializable: one that ran, and could not be committed, runs again
    undone = history.events("log", where=saying("could not serialize access"))
    found.judge(
        history.check(ids, explained=gave_way), duplicates=kills * 2 * _WORKERS + len(undone)
    )
    started_again(found, events, killed, within=_WITHIN * bench.margin)
    own = (Effect, EffectInThread)
    effects_once(found, conn, [job for job, kind in ids.items() if kind in own])
    stricter = conn.execute(
        "SELECT isolation, left(query, 200), count(*) FROM stricter GROUP BY 1, 2"
    ).fetchall()
    found.expect(not stricter, f"not READ COMMITTED: {stricter[:5]}")
    repeated = sum(each.repeated for each in producers)
    found.expect(repeated > 0, "no enqueue was ever refused with 40001")
    found.injected += kills + repeated
    found.jobs += len(ids)
    swept_away(found, conn, workers, _TYPES)


def _gave_way(events: list[Event], producers: list[_Producer]) -> set[int]:
    """The deduplicated jobs after whose last sign of life an identical one ran. (Who removed them may have been killed
    before it could say so; and when somebody says so, that identical one may have run already.)"""
    last = last_starts(events)
    seen = {job: asked for each in producers for job, (_, asked) in each.unique.items()}
    for event in events:
        if event.job in seen and event.what != "superseded":
            seen[event.job] = max(seen[event.job], event.at)
    keys = {job: key for each in producers for job, (key, _) in each.unique.items()}
    return {job for job, at in seen.items() if last[str(keys[job])] > at}


class _Producer:
    """Enqueues in serializable transactions that read what the others write, and repeats what is refused."""

    def __init__(self, seed: float) -> None:
        self._chance = random.Random(seed)
        self.ids: dict[int, type] = {}
        #: Of deduplicated ones: key, and when it was asked for.
        self.unique: dict[int, tuple[int, float]] = {}
        self.repeated = 0

    def work(self, url: str, jobs: int) -> None:
        """So many of them, in batches."""
        with psycopg.connect(url) as conn:
            for number in range(jobs // 10):
                keys = [self._chance.randrange(200) for _ in range(10)]
                kind: Any = (Brief, Effect, EffectInThread, Unique)[number % 4]
                alone, batch = keys[:1], keys[1:]
                # two statements with deduplicated jobs could deadlock with those of another transaction
                parts = [(alone, []), ([], batch)] if kind is Unique else [(alone, batch)]
                for part in parts:
                    while not self._enqueued(conn, kind, *part):
                        self.repeated += 1

    def _enqueued(
        self, conn: psycopg.Connection[Any], kind: Any, alone: list[int], batch: list[int]
    ) -> bool:
        asked = time.monotonic()
        try:
            with conn.transaction():
                conn.execute("SELECT count(*) FROM background_jobs WHERE priority = 7")
                ids = kind.enqueue_batch(conn, [kind(key=key) for key in batch])
                ids += [kind(key=key).enqueue(conn) for key in alone]
        except psycopg.errors.SerializationFailure:
            return False
        found = [(job, key) for job, key in zip(ids, batch + alone, strict=True) if job is not None]
        self.ids |= {job: kind for job, _ in found}
        if kind is Unique:
            self.unique |= {job: (key, asked) for job, key in found}
        return True
