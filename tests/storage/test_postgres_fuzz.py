"""Anything at all, as far as the database: names, payloads, error texts, and rows that no class of ours would write."""

from __future__ import annotations

import json
from dataclasses import field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import AsyncPool
from tests.helpers.running import drain
from tests.storage.engines import PostgresEngine, mails
from tests.unit.test_fuzz import JOBS, TEXT, codec, same
from workers import BackgroundJob, Secret
from workers.config import check_name
from workers.errors import ConfigurationError, InvalidJobError
from workers.lifecycle import Archive, Bury, Retry
from workers.runtime.failure import storable

#: One schema for all examples of a test, which is why they begin by emptying it.
TOGETHER = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def share(part: int) -> settings:
    """For a test that takes as long as `part` others; to shrink what failed would take as long as many."""
    return settings(
        max_examples=settings().max_examples // part,
        suppress_health_check=TOGETHER,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )


#: What can be sent to the server at all.
SENDABLE = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_.:-]{1,100}", fullmatch=True),
    st.text(st.sampled_from("aZ09_.:-\n éſ\u200b"), max_size=102),
    SENDABLE,
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | SENDABLE,
    lambda inner: st.lists(inner) | st.dictionaries(SENDABLE, inner),
    max_leaves=10,
)


@share(10)
@given(st.lists(NAMES, min_size=1, max_size=5))
async def test_a_name_is_refused_or_usable_everywhere(
    postgres: PostgresEngine, names: list[str]
) -> None:
    """By Python and by SQL alike."""
    conn = postgres.conn
    conn.execute("TRUNCATE background_jobs, worker_claims")
    for name in names:
        try:
            check_name("queue", name)
        except ConfigurationError:
            for refused in ((name, "mail"), ("mail", name)):
                with pytest.raises(psycopg.errors.CheckViolation, match="workers: "):
                    conn.execute("SELECT workers_enqueue(%s, '{}', %s)", refused)
            continue
        row = conn.execute("SELECT workers_enqueue(%s, '{}', queue => %s)", [name, name]).fetchone()
        runner = postgres.runner(queues=(name,))
        runner.maintain({name: name}, [name])
        [job] = await runner.take(types=(name,), queue=name)
        assert (job.id, job.job_type, job.queue) == (*(row or ()), name, name)
        assert [stats.queue for stats in await postgres.storage.stats()] == [name]
        await runner.settle([job], Bury("over"))
        await postgres.storage.requeue([job.id])
        assert await runner.complete(await runner.take(types=(name,), queue=name)) == {job.id}
        runner.control.close()


@settings(suppress_health_check=TOGETHER)
@given(JOBS)
def test_what_is_accepted_comes_back_from_the_database(conn: psycopg.Connection, job: Any) -> None:
    """jsonb has an order of keys, and a way of writing numbers, of its own."""
    try:
        text = codec.encode(job)
    except InvalidJobError:
        return
    row = conn.execute("SELECT %s::jsonb::text", [text]).fetchone()
    copy = codec.decode(row[0] if row else "")
    for item in job.__dataclass_fields__:
        assert same(getattr(job, item), getattr(copy, item)), item


@share(10)
@given(st.lists(TEXT, min_size=3, max_size=3))
async def test_any_error_text_is_stored(postgres: PostgresEngine, texts: list[str]) -> None:
    """As it was made storable, letter by letter."""
    postgres.conn.execute("TRUNCATE background_jobs, dead_jobs, archived_jobs, worker_claims")
    await postgres.storage.enqueue(mails(3))
    runner = postgres.runner()
    jobs = await runner.take()
    first, second, third = map(storable, texts)
    await runner.settle(jobs, Retry(0.0, first), Bury(second, second), Archive("cancelled", third))
    records = [await postgres.storage.find(job.id) for job in jobs]
    found = [(record.last_error, record.reason) for record in records if record is not None]
    assert found == [(first, None), (second, second), (None, third)]
    runner.control.close()


class Typed(BackgroundJob[Any]):
    max_attempts = 1

    number: int = 0
    text: Secret[str] = ""
    ratio: float | None = None
    more: dict[str, list[int]] = field(default_factory=dict)

    async def run(self, ctx: Any) -> None:
        if self.number % 2:
            raise ValueError(self, self.text, self.more)


class Loose(BackgroundJob[Any]):
    max_attempts = 1

    number: Any = None
    text: Any = None

    def run(self, ctx: Any) -> None:
        raise ValueError(self.number, self.text)


class Checked(Typed):
    transactional = True
    deduplicated = True

    def __post_init__(self) -> None:
        if self.text:
            raise KeyError(self.text)


#: As a producer may write them, and retries and crashes, which it may not.
ROWS = st.fixed_dictionaries(
    {
        "job_type": st.sampled_from(["typed", "loose", "checked"]) | SENDABLE,
        "data": st.one_of(
            st.fixed_dictionaries(
                {},
                optional={
                    "number": st.integers() | JSON,
                    "text": SENDABLE | JSON,
                    "ratio": JSON,
                    "more": st.dictionaries(SENDABLE, JSON),
                },
            ),
            JSON,
        ),
        "queue": st.sampled_from(["default", "default", None]) | SENDABLE,
        "priority": st.integers(-(2**15), 2**15 - 1),
    },
    optional={
        "run_at": st.sampled_from(["-infinity", "infinity", "now", "9999-12-31", "4000-01-01 BC"]),
        "retries": st.integers(0, 2**31 - 1),
        "crashes": st.sampled_from([1, 2, 2**15 - 1]),
    },
)


def insert(conn: psycopg.Connection, row: dict[str, Any]) -> int | None:
    """Its id; None where the database does not take it."""
    given = row | {"data": json.dumps(row["data"])}
    names, values = ", ".join(given), ", ".join(f"%({name})s" for name in given)
    query = f"INSERT INTO background_jobs ({names}) VALUES ({values}) RETURNING id"
    try:
        found = conn.execute(query.encode(), given).fetchone()
    except (psycopg.IntegrityError, psycopg.DataError):
        return None
    return None if found is None else found[0]


def is_due(row: dict[str, Any]) -> bool:
    known = row["job_type"] in ("typed", "loose", "checked") and row["queue"] in ("default", None)
    return known and row.get("run_at") not in ("infinity", "9999-12-31")


@share(20)
@given(st.lists(ROWS, min_size=1, max_size=30))
async def test_no_row_stops_a_runner(
    conn: psycopg.Connection, pool: AsyncPool, rows: list[dict[str, Any]]
) -> None:
    """Guarantee 5: what is due and known ends, done or dead; the rest is left as it is."""
    conn.execute("TRUNCATE background_jobs, dead_jobs")
    due = {insert(conn, row): is_due(row) for row in rows}
    query = "SELECT id, job_type, data::text, retries, crashes FROM background_jobs ORDER BY id"
    before = conn.execute(query).fetchall()
    await drain(pool, Typed, Loose, Checked, workers=3)
    assert conn.execute(query).fetchall() == [row for row in before if not due[row[0]]]
    for reason, error in conn.execute("SELECT reason, last_error FROM dead_jobs").fetchall():
        assert reason
        assert error is None or "\0" not in error
