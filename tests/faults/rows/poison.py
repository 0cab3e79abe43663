"""Row 6: jobs that nobody can decode, that nobody knows, or that nobody would have written through the library."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from tests.faults.harness import Bench, Found, row
from tests.helpers.history import saying
from tests.helpers.poison import BY_API, BY_FUNCTION, DEAD, FAR, HOSTILE, REFUSED, UNKNOWN
from tests.helpers.poison_jobs import Parcel
from tests.helpers.runners import eventually, left
from workers import InvalidJobError, JobState
from workers.job import JobRecord
from workers.storage import open_storage

_TYPES = "parcel,failing,tireless"
_PATIENCE = 60.0
#: Characters of a reason: more is not to be read.
_READABLE = 1000


@row(
    "6",
    "poison jobs",
    "by SQL and through the library: NUL, lone surrogates, 1e5000, 6,000 levels, unknown types, wrong shapes, 100 MB, NaN, "
    "counters at their limits: the 1,000 good jobs beside them all run once; each of these is dead with a reason, or "
    "untouched and named in the log; what is refused is refused before anything is written",
)
def poison_jobs(bench: Bench) -> Found:
    good = bench.pick(full=1000, quick=1000, tiny=100)
    found = Found(injected=0, jobs=0)
    for _ in range(bench.pick(full=20, quick=2, tiny=1)):
        _once(bench, found, good)
    return found


class _Written:
    """Jobs that were written: ids of what shall run; of what shall die, and of which poison; of what fails, whether it is
    tried again and how often it will have failed."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self.good: list[int | None] = []
        self.dead: dict[int, str] = {}
        self.failing: dict[int, tuple[bool, int]] = {}

    def by_api(self, number: int) -> None:
        self.good.append(Parcel(number=number).enqueue(self._conn))

    def by_sql(self, columns: dict[str, Any]) -> None:
        self.good.append(_insert(self._conn, "parcel", **columns))

    def poison(self, name: str) -> None:
        self.dead[_insert(self._conn, "parcel", DEAD[name][0])] = name

    def fail(self, job_type: str, retries: int, again: bool) -> None:
        job = _insert(self._conn, job_type, retries=retries)
        self.failing[job] = again, min(retries + 1, FAR)

    def write(self, bench: Bench, good: int) -> None:
        """All of them, in any order."""
        todo = [partial(self.by_api, number) for number in range(good)]
        todo += [partial(self.by_sql, columns) for columns in HOSTILE]
        todo += [partial(self.poison, name) for name in DEAD]
        for retries in (31, 32, 1000, FAR - 2, FAR - 1, FAR):
            todo.append(partial(self.fail, "failing", retries, again=False))
            todo.append(partial(self.fail, "tireless", retries, again=retries + 1 < FAR))
        bench.chance.shuffle(todo)
        for do in todo:
            do()


def _once(bench: Bench, found: Found, good: int) -> None:
    with bench.stage() as (url, conn, history, workers):
        unknown = [_insert(conn, name, created_at="-infinity") for name in UNKNOWN]
        before = _stand(conn, unknown)
        members = [workers.start(_TYPES) for _ in range(2)]
        refused = _refused_by_the_server(found, conn) + _refused_by_the_library(found, url)
        written = _Written(conn)
        written.write(bench, good)
        again = sum(again for again, _ in written.failing.values())
        with contextlib.suppress(TimeoutError):  # what it stands at instead is said below
            eventually(lambda: _at_rest(conn, len(unknown) + again), _PATIENCE)
        for name in UNKNOWN:
            shown = name if name.isprintable() else repr(name)
            said = saying(f"jobs of type {shown} have been waiting")
            found.expect(bool(history.wait_for("log", where=said)), f"{name!r} is not named")
        for member in members:
            member.ready()
            member.send(signal.SIGTERM)
            found.expect(member.wait() == 0, "a worker did not end well")

        found.expect(_stand(conn, unknown) == before, "a type that nobody knows was touched")
        ran = [*written.good, *written.failing]
        found.judge(history.check(ran, explained=written.failing))
        twice = [
            job
            for job, n in Counter(event.job for event in history.events("start")).items()
            if n > 1
        ]
        found.expect(not twice, f"run twice: {twice[:10]}")
        _ended(found, asyncio.run(_records(url)), written, unknown)
        found.injected += (
            refused + len(unknown) + len(written.dead) + len(written.failing) + len(HOSTILE)
        )
        found.jobs += len(ran)


def _insert(conn: psycopg.Connection[Any], job_type: str, data: str = "{}", **columns: Any) -> int:
    """Write a row without any check but the server's own."""
    values = {"job_type": job_type, "data": data, "queue": "default"} | columns
    query = f"INSERT INTO background_jobs ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id"
    row = conn.execute(query.encode(), [*values.values()]).fetchone()
    assert row is not None
    return int(row[0])


def _stand(conn: psycopg.Connection[Any], ids: list[int]) -> list[tuple[Any, ...]]:
    """These rows as they are, down to their version."""
    query = "SELECT id, xmin, job::text FROM background_jobs AS job WHERE id = ANY(%s) ORDER BY id"
    return conn.execute(query, [ids]).fetchall()


def _at_rest(conn: psycopg.Connection[Any], rest: int) -> bool:
    """Whether so many are left, and none of them runs."""
    row = conn.execute("SELECT count(*), count(session_id) FROM background_jobs").fetchone()
    return row == (rest, 0)


def _refused_by_the_server(found: Found, conn: psycopg.Connection[Any]) -> int:
    before = left(conn)["background_jobs"]
    commands = {
        name: f"INSERT INTO background_jobs (job_type, queue, data) VALUES ('parcel', 'default', {data})"
        for name, data in REFUSED.items()
    } | {arguments: f"SELECT workers_enqueue({arguments})" for arguments in BY_FUNCTION}
    for name, command in commands.items():
        try:
            conn.execute(command.encode())
            found.expect(False, f"the server takes {name}")
        except psycopg.Error as error:
            said = error.diag.message_primary or ""
            own = name in REFUSED or said.startswith("workers: ")
            found.expect(own and 0 < len(said) <= _READABLE, f"{name}: {said[:_READABLE]}")
    found.expect(left(conn)["background_jobs"] == before, "something refused was written")
    return len(commands)


def _refused_by_the_library(found: Found, url: str) -> int:
    """One by one, in a batch, and by COPY, behind good ones; nothing of it is there, and the transaction goes on."""
    with psycopg.connect(url) as conn:
        before = left(conn)["background_jobs"]
        for name, (values, words) in BY_API.items():
            bad = Parcel(**values())
            batch = [*(Parcel(number=number) for number in range(10)), bad]
            ways: Mapping[str, Callable[[], object]] = {
                "alone": partial(bad.enqueue, conn),
                "in a batch": partial(Parcel.enqueue_batch, conn, batch),
                "by COPY": partial(Parcel.enqueue_batch, conn, iter(batch), return_ids=False),
            }
            for how, enqueue in ways.items():
                try:
                    enqueue()
                    found.expect(False, f"the library takes {name} {how}")
                except InvalidJobError as error:
                    said = str(error)
                    found.expect(words in said and len(said) <= _READABLE, f"{name} {how}: {said}")
                usable = conn.info.transaction_status == TransactionStatus.INTRANS
                found.expect(usable, f"{name} {how} has broken off the transaction")
                found.expect(left(conn)["background_jobs"] == before, f"{name} {how} was written")
    return 3 * len(BY_API)


async def _records(url: str) -> dict[int, JobRecord]:
    """All that is left, as the library reads it."""
    async with open_storage(url) as storage:
        states = (
            JobState.AVAILABLE,
            JobState.RETRYABLE,
            JobState.DEAD,
            JobState.RUNNING,
            JobState.SCHEDULED,
        )
        records = [
            record for state in states for record in await storage.list_jobs(state, limit=2000)
        ]
    return {record.id: record for record in records}


def _ended(
    found: Found, records: dict[int, JobRecord], written: _Written, unknown: list[int]
) -> None:
    """Each poison row is dead with a reason that says what was wrong, or will be tried again."""
    for job, name in written.dead.items():
        reason = (
            records[job].reason if job in records and records[job].state == JobState.DEAD else None
        )
        good = reason is not None and DEAD[name][1] in reason and len(reason) <= _READABLE
        found.expect(good and str(reason).isprintable(), f"{name}: dead because of {reason!r:.200}")
    for job, (again, retries) in written.failing.items():
        record = records.get(job)
        if record is None:
            found.expect(False, f"a job that fails is gone: {job}")
            continue
        state = JobState.RETRYABLE if again else JobState.DEAD
        said = record.last_error if again else record.reason
        found.expect(
            (record.state, record.retries) == (state, retries) and bool(said),
            f"{record.job_type} is {record.state} after {record.retries} attempts, not {state} after {retries}: {said}",
        )
    strangers = records.keys() - written.dead - written.failing.keys() - set(unknown)
    found.expect(not strangers, f"left without a reason: {sorted(strangers)[:10]}")
