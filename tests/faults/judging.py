"""What has to hold after a fault, whatever it was; and when every runner has lived through it."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.faults.harness import Found
from tests.helpers.fault_jobs import Effect, EffectInThread
from tests.helpers.history import Event, History, by
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.producers import Producer
from tests.helpers.runners import eventually, left

__all__ = ["Kills", "effects_once", "end_all", "judge_survivors", "started_again", "swept_away"]

_TRANSACTIONAL = (Effect, EffectInThread)
_TRANSACTIONAL_NAMES = {kind.job_name for kind in _TRANSACTIONAL}
_CLAIMED = "SELECT id FROM background_jobs WHERE session_id = ANY(%s)"


def effects_once(
    found: Found, conn: psycopg.Connection[Any], jobs: Iterable[int | None], *, where: str = ""
) -> None:
    """I2: each of these transactional `jobs` has had its effect, and once; `where`: what the report begins with."""
    counted = Counter(job for (job,) in conn.execute("SELECT job FROM effects"))
    wrong = [job for job in jobs if job is not None and counted[job] != 1]
    found.expect(not wrong, f"{where}effects that are not there exactly once: {wrong[:10]}")


@dataclass(slots=True)
class Kills:
    """Processes that were killed: when each was, and the jobs that it had claimed, begun or not."""

    times: dict[str, float] = field(default_factory=dict)
    claimed: dict[str, set[int]] = field(default_factory=dict)

    def kill(self, victim: WorkerProcess, conn: psycopg.Connection[Any], history: History) -> None:
        """Kill it, and look what it leaves behind."""
        self.times[victim.name] = victim.kill()
        ready = history.events("ready", "session lost", where=by(victim.name))
        with conn.transaction():  # a serializable one might be refused
            conn.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            rows = conn.execute(_CLAIMED, [[event.session for event in ready]]).fetchall()
        self.claimed[victim.name] = {job for (job,) in rows}


def started_again(found: Found, events: Iterable[Event], kills: Kills, *, within: float) -> None:
    """How long the jobs that killed processes were running took to start again.

    One whose heir is killed before it begins has to be found again: its time begins anew. One that was claimed in advance
    and had not begun waits for its turn, like any other.
    """
    events = list(events)
    starts: dict[int, list[float]] = defaultdict(list)
    for event in events:
        if event.what == "start":
            starts[event.job].append(event.at)
    for job, cut_off in _cut_off(events, kills).items():
        claimed = {kills.times[name] for name, jobs in kills.claimed.items() if job in jobs}
        times, due = sorted(cut_off | claimed), False
        for at, next_at in itertools.zip_longest(times, times[1:], fillvalue=math.inf):
            due = due or at in cut_off
            again = min((later for later in starts[job] if later > at), default=math.inf)
            if due and again < next_at:
                found.recovered(again - at, within=within)
                due = False


def _cut_off(events: Iterable[Event], kills: Kills) -> dict[int, set[float]]:
    """The jobs that killed processes were running, and when those were killed."""
    running: dict[tuple[int, str], float] = {}
    for event in events:
        if event.what == "start" and event.process in kills.times:
            running[event.job, event.token] = kills.times[event.process]
        elif event.what in ("end", "broken"):
            running.pop((event.job, event.token), None)
    times: dict[int, set[float]] = defaultdict(set)
    for (job, _), at in running.items():
        times[job].add(at)
    return times


def swept_away(found: Found, conn: psycopg.Connection[Any], workers: Crew, types: str) -> None:
    """I7: the tables end empty. A last worker waits until the sessions of the dead are gone, and ends."""
    last = workers.start(types)
    last.ready()
    with contextlib.suppress(TimeoutError):
        eventually(lambda: left(conn)["worker_sessions"] == 1)
    last.send(signal.SIGTERM)
    found.expect(last.wait() == 0, "the last worker did not end well")
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")


def end_all(found: Found, workers: Crew) -> None:
    """Nobody has ended before they are told to; and they end well."""
    gone = [member.name for member in workers.members if not member.alive]
    found.expect(not gone, f"ended by themselves: {gone}")
    for member in workers.members:
        member.send(signal.SIGTERM)
        found.expect(member.wait() == 0, f"{member.name} did not end well")


def judge_survivors(
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    producers: Sequence[Producer],
    others: Iterable[int | None] = (),
    transactional: Iterable[int | None] = (),
    *,
    sessions: Collection[int],
) -> None:
    """Nothing lost, ordinary jobs begun once, effects there once, and by the `sessions` of the beginning alone.

    `others` and `transactional`: ordinary jobs, and others, that the producers did not enqueue.
    """
    ordinary = {job for job in others if job is not None}
    effects = {job for job in transactional if job is not None}
    history.acknowledge(ordinary | effects)
    for producer in producers:
        for kind, ids in producer.acked.items():
            (effects if kind in _TRANSACTIONAL else ordinary).update(ids)
    unknown = {job for producer in producers for job in producer.unknown}
    found.jobs += len(ordinary) + len(effects)
    told = history.events("unknown")
    plain = {event.job for event in told if event.text not in _TRANSACTIONAL_NAMES}
    verdict = history.check()
    # a transactional job whose commit failed was not done, whatever its code had come to
    rolled_back = set(verdict.duplicated) - ordinary - plain
    found.judge(verdict, duplicates=len(rolled_back))

    starts = Counter(event.job for event in history.events("start"))
    again = [job for job in ordinary | plain if starts[job] > 1]
    found.expect(not again, f"begun again, although their runner lived: {again[:10]}")
    effects_once(found, conn, effects)
    done = Counter(job for (job,) in conn.execute("SELECT job FROM effects"))
    twice = [job for job in unknown if done[job] > 1]
    found.expect(not twice, f"effects of unknown jobs that are there twice: {twice[:10]}")
    strangers = {event.session for event in history.events("start")} - set(sessions)
    found.expect(not strangers, f"sessions that were not there at the beginning: {strangers}")
    for kind in ("session lost", "rescued", "fenced"):
        events = [event for event in history.events() if event.what == kind]
        found.expect(not events, f"{kind}: {events[:3]}")
