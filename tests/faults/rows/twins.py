"""Row 13d: identical jobs that run beside each other, and all have to wait again."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.helpers.fault_jobs import Twin
from tests.helpers.history import History, by
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually, left

#: The lease of whoever sweeps: it looks three times in a lease.
_SOON = 1.5
_PATIENCE = 60.0


@row(
    "13d",
    "bulk give-back of identical deduplicated jobs",
    "pairs of running twins in one runner that is killed, in one that is told to end, and in one of each: no error; of each "
    "pair one waits and one made way, crashes are counted and nothing else is, and the one that waits runs once",
)
def given_back(bench: Bench) -> Found:
    pairs = bench.pick(full=100, quick=20, tiny=5)
    found = Found(injected=0, jobs=0)
    for _ in range(bench.pick(full=20, quick=2, tiny=1)):
        with bench.stage() as (_, conn, history, workers):
            _once(bench, found, conn, history, workers, pairs)
    return found


def _once(
    bench: Bench,
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    workers: Crew,
    pairs: int,
) -> None:
    # so many on the average
    first, second = sorted(bench.chance.sample(range(1, 3 * pairs), 2))
    killed, told, both = range(first), range(first, second), range(second, 3 * pairs)
    stage = _Stage(bench, conn, history, workers)
    dying, ending = stage.occupied(killed, killed), stage.occupied(told, told, grace=0)
    dying_half, ending_half = stage.occupied(both), stage.occupied(both, grace=0)
    sweeper = workers.start("later", lease=_SOON)
    sweeper.ready()

    for member in bench.chance.sample((ending, ending_half, dying, dying_half), 4):
        if member in (dying, dying_half):
            member.kill()
        else:
            member.send(signal.SIGTERM)

    for member in (ending, ending_half):
        found.expect(member.wait() == 0, f"{member.name} did not end well")
    eventually(stage.all_wait, _PATIENCE)
    waiting = stage.waiting()
    keys = Counter(key for key, *_ in waiting)
    found.expect(
        keys == dict.fromkeys(range(3 * pairs), 1), f"of some keys not exactly one waits: {waiting}"
    )
    wrong = [row for row in waiting if row[2:] != (int(row[0] not in told), 0)]
    found.expect(not wrong, f"not counted as they should be (key, id, crashes, retries): {wrong}")
    last = {job for _, job, *_ in waiting}
    with contextlib.suppress(TimeoutError):
        history.wait_for("superseded", count=3 * pairs)
    gave_way = Counter(event.job for event in history.events("superseded"))
    found.expect(gave_way == dict.fromkeys(stage.ids - last, 1), f"made way: {gave_way}")

    heir = workers.start("twin")
    heir.open()
    eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    for member in (sweeper, heir):
        member.send(signal.SIGTERM)
        found.expect(member.wait() == 0, f"{member.name} did not end well")
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
    found.judge(history.check(stage.ids, explained=stage.ids - last))
    errors = history.events("log", where=lambda event: event.text.startswith(("ERROR", "CRIT")))
    found.expect(not errors, f"errors: {errors[:3]}")
    found.injected += 3 * pairs
    found.jobs += len(stage.ids)


class _Stage:
    """Runners that hold twins."""

    def __init__(
        self, bench: Bench, conn: psycopg.Connection[Any], history: History, workers: Crew
    ) -> None:
        self._chance = bench.chance
        self._conn = conn
        self._history = history
        self._workers = workers
        self.ids: set[int] = set()

    def occupied(self, *batches: Sequence[int], **options: object) -> WorkerProcess:
        """A runner that is busy with jobs of these keys, batch after batch, and can take no others."""
        most = sum(map(len, batches))
        runner = self._workers.start("twin", workers=most, **options)
        runner.ready()
        begun = 0
        for keys in batches:
            jobs = Twin.enqueue_batch(
                self._conn, [Twin(key=key) for key in self._chance.sample(keys, len(keys))]
            )
            self.ids |= {job for job in jobs if job is not None}
            begun += len(keys)
            self._history.wait_for("start", count=begun, where=by(runner.name), seconds=_PATIENCE)
        return runner

    def all_wait(self) -> bool:
        """Whether nothing is claimed any more."""
        query = "SELECT count(session_id) FROM background_jobs"
        return self._conn.execute(query).fetchone() == (0,)

    def waiting(self) -> list[tuple[Any, ...]]:
        """Key, id, crashes, retries."""
        query = "SELECT (data->>'key')::integer, id, crashes, retries FROM background_jobs ORDER BY 1, 2"
        return self._conn.execute(query).fetchall()
