"""Rows that were not written by this library: no text, number or time in one stops a queue (guarantee 5, rule 21)."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest

from tests.storage.engines import PostgresEngine, ids, mails
from workers.job import JobState
from workers.lifecycle import Archive, Bury, Delete, Release, Retry, Transition, Wait

DEEP = 5000

#: Texts of jsonb that some decoder chokes on: a claim must hand each of them over, as text, beside its neighbours.
PAYLOADS = [
    '{"x": 1e5000}',
    '{"x": ' + "9" * 5000 + "}",
    '{"x": "' + "y" * 1_500_000 + '"}',
    "[" * DEEP + "]" * DEEP,
    "null",
    "3",
    '"text"',
    "[]",
    '{"": {"": ""}}',
    '{"x": "\\u202e\\u0001%s %(name)s \\\\ \\" \' ;--"}',
]

PAST = ["-infinity", "4000-01-01 BC"]
TIMES = [*PAST, "infinity", "9999-12-31 23:59:59.999999+00", "290000-01-01"]


def insert(postgres: PostgresEngine, **columns: object) -> int:
    """A job past the API."""
    given = {"job_type": "mail", "data": "{}", "queue": "default"} | columns
    names, values = ", ".join(given), ", ".join(f"%({name})s" for name in given)
    query = f"INSERT INTO background_jobs ({names}) VALUES ({values}) RETURNING id"
    row = postgres.conn.execute(query, given).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda text: text[:20])
async def test_payloads(postgres: PostgresEngine, payload: str) -> None:
    """Rule 15: payloads travel as text, so that a bad one harms itself alone."""
    runner = postgres.runner()
    before, bad, after = insert(postgres), insert(postgres, data=payload), insert(postgres)
    jobs = await runner.take()
    assert ids(jobs) == [before, bad, after]
    await runner.settle([jobs[1]], Bury("undecodable"))
    assert await runner.complete([jobs[0], jobs[2]]) == {before, after}
    record = await postgres.storage.find(bad)
    assert record is not None
    assert record.state is JobState.DEAD


async def test_a_payload_that_grows_when_it_is_written_out(postgres: PostgresEngine) -> None:
    """Guarantee 5: a few bytes in the table, 26 MB in a claim, or a gigabyte: refused where it is written."""
    with pytest.raises(psycopg.errors.CheckViolation):
        insert(postgres, data='{"n": [' + ",".join(["1e131000"] * 200) + "]}")


GROWS = '{"n": [' + ",".join(["1e131000"] * 127) + "]}"  # 16 MB, almost too much


def copied(postgres: PostgresEngine, data: str) -> None:
    with postgres.conn.cursor().copy("COPY background_jobs (job_type, data) FROM STDIN") as copy:
        copy.write_row(("mail", data))


async def test_a_payload_is_measured_where_it_is_written(postgres: PostgresEngine) -> None:
    """However it is written; and not again by each claim, staging and retry, which would write it out for that."""
    large = GROWS.replace("[", "[1e131000, 1e131000, ")
    with pytest.raises(psycopg.errors.CheckViolation, match="workers_payload_size"):
        insert(postgres, data=large)
    with pytest.raises(psycopg.errors.CheckViolation, match="workers_payload_size"):
        copied(postgres, large)
    job_id = insert(postgres, data=GROWS)
    with pytest.raises(psycopg.errors.CheckViolation, match="workers_payload_size"):
        postgres.conn.execute("UPDATE background_jobs SET data = %s::jsonb", [large])
    measured = """
        SELECT conname FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = ANY(conkey)
        WHERE conrelid = 'background_jobs'::regclass AND contype = 'c' AND attname = 'data'"""
    assert postgres.conn.execute(measured).fetchall() == []
    found = postgres.conn.execute("SELECT data FROM background_jobs WHERE id = %s", [job_id])
    assert found.description is not None
    assert found.description[0].type_code == psycopg.adapters.types["jsonb"].oid, "to every driver"


async def test_bare_insert(postgres: PostgresEngine) -> None:
    """The original's columns alone make a valid job."""
    postgres.conn.execute(
        "INSERT INTO background_jobs (job_type, data, priority) VALUES ('mail', '{\"number\": 1}', 7)"
    )
    runner = postgres.runner()
    runner.maintain()
    [job] = await runner.take()
    assert (job.queue, job.priority, job.data) == ("default", 7, '{"number": 1}')


@pytest.mark.parametrize("column", ["run_at", "created_at", "last_retry"])
@pytest.mark.parametrize("time", TIMES)
async def test_times_beyond_pythons(postgres: PostgresEngine, column: str, time: str) -> None:
    """Guarantee 5: a row can be seen whatever its times are."""
    job_id = insert(postgres, **{column: time})
    for record in (
        await postgres.storage.find(job_id),
        *await postgres.storage.list_jobs(
            JobState.SCHEDULED if column == "run_at" else JobState.AVAILABLE
        ),
    ):
        assert record is not None
        assert record.id == job_id
    assert len(await postgres.storage.stats()) == 1
    runner = postgres.runner()
    runner.maintain()
    jobs = await runner.take()
    assert len(jobs) == (column != "run_at" or time in PAST)
    await runner.settle(jobs, Bury("over"))
    assert len(await postgres.storage.list_jobs(JobState.DEAD)) == len(jobs)
    assert len(await postgres.storage.stats()) == 1


async def test_times_are_exact(postgres: PostgresEngine) -> None:
    """What Python can hold comes back to the microsecond, whatever the session's time zone and style."""
    when = datetime(2031, 5, 6, 7, 8, 9, 123457, tzinfo=UTC)
    job_id = insert(postgres, created_at=when, run_at=when)
    record = await postgres.storage.find(job_id)
    assert record is not None
    assert record.created_at == record.run_at == when


@pytest.mark.parametrize("deduplicated", [False, True])
@pytest.mark.parametrize(
    "transition", [Release(), Retry(1.0, "boom"), Wait(1e300), Bury("over"), Archive("completed")]
)
async def test_counters_at_their_ends(
    postgres: PostgresEngine, transition: Transition, deduplicated: bool
) -> None:
    """Rule 21: nothing in a row makes a statement raise."""
    runner = postgres.runner()
    worst = {
        "retries": 2**31 - 1,
        "crashes": 2**15 - 1,
        "priority": -(2**15),
        "last_error": "é\x01\u202e" * 1000,
    }
    job_id = insert(postgres, deduplicated=deduplicated, **worst)
    [job] = await runner.take(suspects=2**15 - 1)
    settled = await runner.settle([job], transition)
    assert list(settled.written) == [job_id]


TEXTS = [
    "",
    "NULL",
    '"',
    "\\",
    "{}",
    "{a,b}",
    "a,b",
    "%s %(x)s %%",
    "'; DROP TABLE x; --",
    "é\u202e\U0001f4a5",
    "a\nb\tc",
]


@pytest.mark.parametrize("text", TEXTS)
async def test_texts_come_back_as_they_were(postgres: PostgresEngine, text: str) -> None:
    """Rule 15: errors and reasons are stored letter by letter, next to each other in one batch."""
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(4))
    retried, buried, archived, plain = await runner.take()
    await runner.settle(
        [retried, buried, archived, plain],
        Retry(0.0, text),
        Bury(text, text),
        Archive("cancelled", text),
        Bury("over", None),
    )
    records = [await postgres.storage.find(job.id) for job in (retried, buried, archived, plain)]
    found = [(record.last_error, record.reason) for record in records if record is not None]
    assert found == [(text, None), (text, text), (None, text), (None, "over")]


async def test_types_and_queues_by_hand(postgres: PostgresEngine) -> None:
    """Rule 6: any text that fits the columns can be claimed, and none opens a hole."""
    runner = postgres.runner()
    for text in TEXTS[1:]:
        job_id = insert(postgres, job_type=text, queue=text)
        runner.maintain({text: "default"}, [text])
        [job] = await runner.take(types=(text, "mail"), queue=text, thorough=False)
        assert (job.id, job.job_type, job.queue) == (job_id, text, text)
        await runner.settle([job], Delete())


async def test_many_unknown_homeless_rows(postgres: PostgresEngine) -> None:
    """Rule 6: rows that nobody here knows don't hide those that are known, nor are they read each second."""
    postgres.conn.execute(
        "INSERT INTO background_jobs (job_type, data, priority) SELECT 'odd', '{}', 9 FROM generate_series(1, 20000)"
    )
    known = insert(postgres, queue=None)
    runner = postgres.runner()
    runner.maintain()
    assert ids(await runner.take()) == [known]
