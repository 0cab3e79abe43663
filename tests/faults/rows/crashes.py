"""Row 4: the database crashes, and comes back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found, Scale, row, warm
from tests.faults.judging import judge_survivors, swept_away
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Held
from tests.helpers.history import History, by, saying
from tests.helpers.own_server import OwnServer
from tests.helpers.processes import WorkerProcess
from tests.helpers.producers import Producer, producing
from tests.helpers.runners import eventually, left

_TYPES = "brief,held,effect,effect_in_thread"
_KINDS = (Brief, Effect, EffectInThread)
_WORKERS, _RUNNERS = 12, 2
#: Jobs that are at work all the while, through every crash; and those that are at each one.
_HELD, _LONG = 6, 4
#: Seconds from the moment at which the server answers until every runner has begun a new job.
_WITHIN = 10.0
_PATIENCE = 60.0


@row(
    "4",
    "database crash",
    "an immediate stop and kill -9 of the postmaster in turns, under load, fsync on: lost 0, every runner begins new jobs "
    "within 10 s, jobs at work go on and are not begun again, transactional effects exactly once",
)
def database_crash(bench: Bench) -> Found:
    crashes = bench.pick(full=50, quick=4, tiny=1)
    # a transactional job that finds no server is put off for 5 s
    kinds: tuple[Any, ...] = bench.pick(full=_KINDS, quick=_KINDS, tiny=(Brief,))
    found = Found(injected=crashes, jobs=0)
    with (
        bench.server() as server,
        bench.database(server.dsn) as url,
        bench.history() as history,
        bench.workers(url, history) as workers,
    ):
        if bench.scale is not Scale.TINY:  # all have every reason to judge by locks
            warm(server.dsn)
        members = [workers.start(_TYPES, workers=_WORKERS) for _ in range(_RUNNERS)]
        sessions = {member.ready() for member in members}
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(EFFECTS)
            ids = Held.enqueue_batch(conn, [Held(key=key) for key in range(_HELD)])
        with producing(workers, *kinds) as producers:
            for number in range(crashes):
                how = server.kill if number % 2 else server.stop_at_once
                ids += _crashed(bench, found, (server, url, history, members), producers, how)
        for member in members:
            member.open()
        with psycopg.connect(url, autocommit=True) as conn:
            eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
            for member in members:
                member.send(signal.SIGTERM)
                found.expect(member.wait() == 0, f"{member.name} did not end well")
            judge_survivors(found, conn, history, producers, ids, sessions=sessions)
            swept_away(found, conn, workers, _TYPES)
    return found


def _crashed(
    bench: Bench,
    found: Found,
    stage: tuple[OwnServer, str, History, list[WorkerProcess]],
    producers: list[Producer],
    how: Callable[[], None],
) -> list[int | None]:
    """One crash, at a random moment, and the way back: at once, or a while later. The ids of the jobs that it needed."""
    server, url, history, members = stage
    with psycopg.connect(url, autocommit=True) as conn:
        seconds = bench.pick(full=1.5, quick=1.5, tiny=0.5)
        long = Brief.enqueue_batch(conn, [Brief(key=key, seconds=seconds) for key in range(_LONG)])
    last = max(job or 0 for job in long)
    history.wait_for("start", count=_LONG, where=lambda event: event.job in long)
    some = bench.chance.randrange(1, 100)
    history.wait_for("end", count=some, where=lambda event: event.job > last)
    began = time.monotonic()
    how()
    if refusals := bench.chance.choice((0, 1, 10, 100)):
        for member in members:
            mine = saying("connection is lost", member.name)
            history.wait_for("log", where=lambda event: mine(event) and event.at > began)  # noqa: B023
        producers[0].wait_refused(producers[0].refused + refusals)
    server.start()
    up = server.up_since
    with psycopg.connect(url, autocommit=True) as conn:
        new = Brief.enqueue_batch(conn, [Brief(key=key) for key in range(10)])
    first = min(job or 0 for job in new)
    for member in members:
        mine = by(member.name)
        (event, *_) = history.wait_for(
            "start",
            where=lambda event: mine(event) and event.job >= first,  # noqa: B023
        )
        found.recovered(event.at - up, within=_WITHIN * bench.margin)
    if bench.scale is not Scale.TINY and bench.chance.random() < 0.2:
        warm(server.dsn)  # long enough for the locks to be judged again
    return long + new
