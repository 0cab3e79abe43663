"""Rows 5 and 13b: a write is carried out, and its reply never arrives."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import effects_once
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Flaky, Twin
from tests.helpers.history import History
from tests.helpers.processes import WorkerProcess
from tests.helpers.proxy import Proxy, proxy_to
from tests.helpers.runners import eventually, left

#: Parts of statements.
_CLAIM, _COMPLETION, _COMMIT = "INTO worker_claims", "workers_complete(", "COMMIT"
_RETRY = "last_retry = CASE WHEN held.counted"
_MOST_JOBS, _MOST_CLAIMED = 10, 40
#: What is lost of jobs of each kind; None: what their producer is told of its commit.
_LOST: dict[Any, str] = {
    None: _COMMIT,
    Brief: _COMPLETION,
    Effect: _COMMIT,
    Flaky: _RETRY,
}
#: Seconds until the jobs of a claim run whose reply was lost.
_WITHIN = 5.0


@row(
    "5",
    "commit reply lost",
    "links cut after the COMMIT of an enqueue or a transactional job, a completion or a retry has passed: lost 0, twice 0, "
    "effects exactly once, and a deduplicated enqueue repeated after the error is not doubled",
)
def lost_commits(bench: Bench) -> Found:
    times = bench.pick(full=100, quick=10, tiny=2)
    found = Found(injected=5 * times, jobs=0)
    with (
        bench.stage() as (url, conn, history, workers),
        proxy_to(url) as producers,
        proxy_to(url) as runners,
    ):
        conn.execute(EFFECTS)
        twins = _repeated(bench, found, conn, producers, times)
        runner = workers.start("brief,effect,effect_in_thread,flaky,twin", database_url=runners.url)
        runner.ready()
        runner.open()
        # each of them so often, in any order
        kinds = [kind for kind in _LOST for _ in range(times)]
        bench.chance.shuffle(kinds)
        ids: dict[Any, list[int | None]] = {kind: [] for kind in _LOST}
        for kind in kinds:
            if kind is None:
                ids[kind] += _unconfirmed(bench, found, producers)
            else:
                ids[kind] += _unheard(bench, conn, runners, kind)
        _ended(found, conn, history, runner)
        once = [*twins, *ids[None], *ids[Brief], *ids[Effect]]
        _judged(found, history, dict.fromkeys(once, 1) | dict.fromkeys(ids[Flaky], 2))
        effects_once(found, conn, ids[Effect])
    return found


@row(
    "13b",
    "claim reply lost",
    "links cut after a claim's commit, once, three times in a row, and with all other links of the runner: its jobs run "
    "within 5 s on the same runner, once each",
)
def lost_claims(bench: Bench) -> Found:
    rounds = bench.pick(full=100, quick=8, tiny=2)
    found = Found(injected=0, jobs=0)
    wanted: dict[int | None, int] = {}
    with bench.stage() as (url, conn, history, workers), proxy_to(url) as proxy:
        runner = workers.start("brief", database_url=proxy.url)
        session = runner.ready()
        for _ in range(rounds):
            for cuts in bench.chance.sample((1, 3, 0), 3):
                jobs = [Brief(key=key) for key in range(bench.chance.randrange(1, _MOST_CLAIMED))]
                if cuts:
                    with _losing(proxy, _CLAIM, cuts, rows=True):
                        ids = Brief.enqueue_batch(conn, jobs)
                else:
                    held = proxy.hold_reply(_CLAIM, rows=True)
                    ids = Brief.enqueue_batch(conn, jobs)
                    held.wait()
                    proxy.cut()
                lost_at = time.monotonic()
                new = set(ids)
                ended = history.wait_for(
                    "end",
                    count=len(new),
                    where=lambda event: event.job in new,  # noqa: B023
                )
                found.recovered(
                    max(event.at for event in ended) - lost_at, within=_WITHIN * bench.margin
                )
                found.injected += cuts or 1
                wanted |= dict.fromkeys(ids, 1)
        _ended(found, conn, history, runner)
        _judged(found, history, wanted)
        sessions = {event.session for event in history.events("start")}
        found.expect(sessions == {session}, f"they ran in the sessions {sessions}, not {session}")
    return found


@contextmanager
def _losing(proxy: Proxy, text: str, times: int = 1, *, rows: bool = False) -> Iterator[None]:
    """Lose the reply to a statement that what is done here brings about, and wait until it is lost."""
    lost = proxy.lose_reply(text, times=times, rows=rows)
    yield
    lost.wait(times)


def _unheard(
    bench: Bench, conn: psycopg.Connection[Any], proxy: Proxy, kind: Any
) -> list[int | None]:
    """The ids of jobs of which a runner does not hear that their ends, or the first of them, are written."""
    if kind is Effect:
        with _losing(proxy, _LOST[kind]):
            return [bench.chance.choice((Effect, EffectInThread))(key=1).enqueue(conn)]
    with _losing(proxy, _LOST[kind]):
        jobs = [kind(key=key) for key in range(bench.chance.randrange(1, _MOST_JOBS + 1))]
        ids: list[int | None] = kind.enqueue_batch(conn, jobs)
    return ids


def _unconfirmed(bench: Bench, found: Found, proxy: Proxy) -> list[int | None]:
    """The ids of jobs whose producer saw its commit fail, after it had passed."""
    jobs = [Brief(key=key) for key in range(bench.chance.randrange(1, _MOST_JOBS + 1))]
    ids: list[int | None] = []
    with _losing(proxy, _COMMIT):
        try:
            with psycopg.connect(proxy.url) as producer:
                ids = Brief.enqueue_batch(producer, jobs)
        except psycopg.OperationalError:
            return ids
    found.expect(False, "a reply that was to be lost came through")
    return ids


def _repeated(
    bench: Bench, found: Found, conn: psycopg.Connection[Any], proxy: Proxy, times: int
) -> list[int | None]:
    """The same with deduplicated jobs, enqueued again after the error while nobody runs them."""
    for key in range(times):
        autocommit = bench.chance.random() < 0.5
        with _losing(proxy, "workers_enqueue_deduplicated" if autocommit else _COMMIT):
            try:
                with psycopg.connect(proxy.url, autocommit=autocommit) as producer:
                    Twin(key=key).enqueue(producer)
            except psycopg.OperationalError:
                pass
        with psycopg.connect(proxy.url) as producer:
            again = Twin(key=key).enqueue(producer)
        found.expect(again is None, f"a deduplicated job was doubled: {again}")
    rows = conn.execute("SELECT id FROM background_jobs WHERE job_type = 'twin'").fetchall()
    found.expect(len(rows) == times, f"{len(rows)} of {times} deduplicated jobs are there")
    return [job for (job,) in rows]


def _ended(
    found: Found, conn: psycopg.Connection[Any], history: History, runner: WorkerProcess
) -> None:
    """The runner has finished everything, and ends; none of its writes was refused."""
    eventually(lambda: left(conn)["background_jobs"] == 0)
    runner.send(signal.SIGTERM)
    found.expect(runner.wait() == 0, "the runner did not end well")
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
    fenced = history.events("fenced", "session lost")
    found.expect(not fenced, f"the runner lost claims: {fenced[:3]}")


def _judged(found: Found, history: History, wanted: dict[int | None, int]) -> None:
    """Each job was started as often as `wanted`."""
    found.judge(history.check(wanted))
    started = Counter(event.job for event in history.events("start"))
    wrong = [job for job, times in wanted.items() if started[job or 0] != times]
    found.expect(not wrong, f"not started as often as they should be: {wrong[:10]}")
    found.jobs = len(wanted)
