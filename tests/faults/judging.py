"""What has to hold when every runner has lived through the fault: nobody's jobs were taken for abandoned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import psycopg

from tests.faults.harness import Found
from tests.helpers.fault_jobs import Effect, EffectInThread
from tests.helpers.history import History, check
from tests.helpers.producers import Producer

__all__ = ["judge_survivors"]


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
    for producer in producers:
        for kind, ids in producer.acked.items():
            (effects if kind in (Effect, EffectInThread) else ordinary).update(ids)
    unknown = {job for producer in producers for job in producer.unknown}
    found.jobs += len(ordinary) + len(effects)
    verdict = check(history.events(), ordinary | effects | unknown, explained=unknown)
    # a transactional job whose commit failed was not done, whatever its code had come to
    rolled_back = set(verdict.duplicated) - ordinary
    found.judge(verdict, duplicates=len(rolled_back))

    starts = Counter(event.job for event in history.events("start"))
    again = [job for job in ordinary if starts[job] > 1]
    found.expect(not again, f"begun again, although their runner lived: {again[:10]}")
    done = Counter(job for (job,) in conn.execute("SELECT job FROM effects"))
    wrong = [job for job in effects if done[job] != 1]
    wrong += [job for job in unknown if done[job] > 1]
    found.expect(not wrong, f"effects that are not there exactly once: {wrong[:10]}")
    strangers = {event.session for event in history.events("start")} - set(sessions)
    found.expect(not strangers, f"sessions that were not there at the beginning: {strangers}")
    for kind in ("session lost", "rescued", "fenced"):
        events = [event for event in history.events() if event.what == kind]
        found.expect(not events, f"{kind}: {events[:3]}")
