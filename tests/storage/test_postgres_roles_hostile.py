"""A producer that means harm, and writes past the functions: what is refused, and what runners make of the rest.

It may fill five columns with what the table takes: longer names than the library's, in any letters, payloads of up to 16 MiB
that nobody can decode, and any time."""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import CheckViolation

from tests.helpers.poison import DEAD, REFUSED, UNKNOWN
from tests.helpers.role_users import Users
from tests.helpers.running import World, eventually, running
from workers import BackgroundJob, JobState
from workers.storage import open_storage

#: The most characters of a reason that is to be read.
READABLE = 1000


class Parcel(BackgroundJob[World]):
    number: int = 0
    ratio: float = 0.0
    text: str = ""
    anything: Any = None

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


class ParcelInThread(Parcel):
    def run(self, ctx: World) -> None:  # type: ignore[override]  # a thread's
        ctx.note(self.number)


class ParcelInside(Parcel):
    transactional = True


TYPES = (Parcel, ParcelInThread, ParcelInside)


def insert(producer: psycopg.Connection, **columns: object) -> int:
    """A row, as only a producer writes one; its id, which a producer may ask the sequence for."""
    given = {"job_type": "parcel", "data": "{}", "queue": "default"} | columns
    query = sql.SQL("INSERT INTO background_jobs ({}) VALUES ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, given)),
        sql.SQL(", ").join([sql.Placeholder()] * len(given)),
    )
    producer.execute(query, list(given.values()))
    ((job_id,),) = producer.execute("SELECT currval('background_jobs_id_seq')")
    return int(job_id)


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("job_type", "NULL"),
        ("job_type", "''"),
        ("job_type", "repeat('x', 401)"),
        ("job_type", "repeat('é', 201)"),
        ("job_type", "repeat('x', 100000000)"),
        ("queue", "''"),
        ("queue", "repeat('x', 401)"),
        ("queue", r"E'a\x00b'"),
        ("queue", r"E'a\xffb'"),
        ("priority", "32768"),
        ("priority", "-32769"),
        ("priority", "NULL"),
        ("run_at", "'300000-01-01'"),
        ("data", "NULL"),
        ("data", "jsonb_build_object('text', repeat('x', 1073741824))"),
        *(("data", value) for value in REFUSED.values()),
    ],
)
def test_what_the_table_refuses(
    producer: psycopg.Connection, conn: psycopg.Connection, column: str, value: str
) -> None:
    """Not for want of a right."""
    given = {"job_type": "'parcel'", "data": "'{}'"} | {column: value}
    query = f"INSERT INTO background_jobs ({', '.join(given)}) VALUES ({', '.join(given.values())})"
    with pytest.raises((psycopg.DataError, psycopg.IntegrityError, psycopg.OperationalError)):
        producer.execute(query.encode())
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)
    assert insert(producer)


@pytest.mark.parametrize(
    "row",
    [
        ("parcel", "default", '{"text": "' + "x" * 17_000_000 + '"}'),
        ("parcel", "default", '{"anything": [' + ",".join(["1e131000"] * 200) + "]}"),
        ("x" * 401, "default", "{}"),
        ("parcel", "", "{}"),
    ],
    ids=["17 MB", "26 MB written out", "long type", "no queue's name"],
)
def test_what_copy_refuses(
    producer: psycopg.Connection, conn: psycopg.Connection, row: tuple[str, ...]
) -> None:
    command = "COPY background_jobs (job_type, queue, data) FROM STDIN"
    with pytest.raises(CheckViolation), producer.cursor().copy(command) as copy:
        copy.write_row(row)
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)


# ---------------------------------------------------------------------------------------------------- what is survived

#: Written out it is almost too much, and stored it is next to nothing.
LARGEST = '{"anything": [' + ",".join(["1e131000"] * 127) + "]}"
BAD = {**DEAD, "large": (LARGEST, "`anything[0]`")}
#: Rows that run, whatever they look like.
ODD: tuple[dict[str, Any], ...] = (
    {"priority": 32767, "run_at": "-infinity"},
    {"priority": -32768, "run_at": "4000-01-01 BC"},
    {"queue": None},
    {"data": '{"number": -1, "text": "' + "x" * 10_000_000 + '"}'},
    {"data": '{"number": -1, "other": "\\u202e\\u0001%s %(name)s \\\\ \\" \' ;--"}'},
)
#: Rows that nobody works, or not yet.
LEFT: tuple[dict[str, Any], ...] = (
    *({"job_type": name} for name in UNKNOWN),
    *({"job_type": name, "queue": None} for name in UNKNOWN),
    *({"queue": name} for name in (*UNKNOWN, "\x1b[2J\r", "default ", "[red]", "1 0 default")),
    {"run_at": "infinity"},
    {"run_at": "294276-12-31 23:59:59"},
)
#: What comes on the channel where anybody may say anything.
NOTICES = (
    "",
    "probe 1",
    "x" * 7999,
    "suspects -1 0 default",
    f"{2**63} 0 default",
    "-1 0 default",
    f"{'9' * 4000} 0 default",
    "1 99999 default",
    "1 0 default",
    "1 0 \x1b[2J\n",
    f"1 0 {'q' * 400}",
)
#: Each priority that there is, and thousands of queues.
FLOODS = (
    "SELECT workers_notify('default', number::smallint, 0) FROM generate_series(-32768, 32767) AS number",
    "SELECT workers_notify('q' || number, 0::smallint, 0) FROM generate_series(1, 5000) AS number",
)


class Attack:
    """Writes, as a producer; knows what has to become of it."""

    def __init__(self, producer: psycopg.Connection, conn: psycopg.Connection) -> None:
        self._producer = producer
        self._conn = conn
        self.good: list[int] = []
        self.dead: dict[int, str] = {}
        self.left: dict[int, object] = {}

    def write(self) -> None:
        """All of it, in any order, with good jobs in between."""
        job_types = [job_type.job_name for job_type in TYPES]
        todo: list[tuple[Any, ...]] = [(self._run, row) for row in ODD]
        todo += [(self._die, job_type, name) for job_type in job_types for name in BAD]
        todo += [(self._stay, row) for row in LEFT]
        todo += [(self._say, notice) for notice in NOTICES]
        todo += [(self._producer.execute, flood) for flood in FLOODS]
        todo += [(self._enqueue, job_type, n) for job_type in TYPES for n in range(30)]
        random.Random(7).shuffle(todo)
        for do, *arguments in todo:
            do(*arguments)

    def _run(self, row: dict[str, Any]) -> None:
        insert(self._producer, **({"data": '{"number": -1}'} | row))
        self.good.append(-1)

    def _die(self, job_type: str, name: str) -> None:
        self.dead[insert(self._producer, job_type=job_type, data=BAD[name][0])] = name

    def _stay(self, row: dict[str, Any]) -> None:
        job_id = insert(self._producer, **row)
        self.left[job_id] = self.stand(job_id)

    def stand(self, job_id: int) -> object:
        """That row as it is, down to its version."""
        query = "SELECT xmin, job::text FROM background_jobs AS job WHERE id = %s"
        return self._conn.execute(query, [job_id]).fetchone()

    def _say(self, notice: str) -> None:
        self._producer.execute("SELECT pg_notify(workers_channel(), %s)", [notice])

    def _enqueue(self, job_type: type[Parcel], number: int) -> None:
        job_type(number=number).enqueue(self._producer)
        self.good.append(number)


async def test_what_a_producer_writes_harms_no_other_job(
    users: Users, producer: psycopg.Connection, conn: psycopg.Connection
) -> None:
    """Guarantee 5: each bad row is dead with a reason, or as it was; each good job has run, once; all can be looked at."""
    attack, world = Attack(producer, conn), World()
    async with running(users.urls["worker"], *TYPES, context=world):
        attack.write()
        await eventually(conn, "SELECT count(*) FROM background_jobs", [(len(attack.left),)])
        Parcel(number=-2).enqueue(producer)
        await eventually(conn, "SELECT count(*) FROM background_jobs", [(len(attack.left),)])
    assert sorted(world.seen) == sorted([*attack.good, -2])
    assert {job_id: attack.stand(job_id) for job_id in attack.left} == attack.left
    async with open_storage(users.urls["readonly"]) as storage:
        dead = {job.id: job for job in await storage.list_jobs(JobState.DEAD, limit=1000)}
        waiting = await storage.list_jobs(JobState.AVAILABLE, limit=1000)
        queues = {queue.queue for queue in await storage.stats()}
    assert dead.keys() == attack.dead.keys()
    for job_id, name in attack.dead.items():
        reason = dead[job_id].reason
        assert reason is not None
        assert BAD[name][1] in reason, name
        assert reason.isprintable(), name
        assert len(reason) <= READABLE, name
    assert {job.id for job in waiting} <= attack.left.keys()
    assert queues >= {"\x1b[2J\r", *UNKNOWN}
