"""`enqueue` and `enqueue_batch` on every kind of connection, with the real libraries.

Guarantees 1 and 8, and the rules of transactions: commit makes a job visible, rollback makes it vanish, in autocommit it is
there at once, a batch all or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.helpers.django_database import django_database
from tests.helpers.enqueue_targets import ATOMIC, SETTLED, Target, open_target
from tests.helpers.role_users import opened_users
from tests.helpers.server import connection_url
from workers import BackgroundJob, InvalidJobError, Priority, UnsupportedConnectionError
from workers.job_type import describe

HOSTILE = "100% :name %(data)s $1 \\ ' \" ''; DROP TABLE background_jobs; -- é 🦊 \u2028\t"
WHEN = datetime(2999, 12, 31, 23, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
ROWS = "SELECT id, job_type, data, priority, queue, run_at FROM background_jobs ORDER BY position"


class Catch(BackgroundJob[Any]):
    queue = "field_work"
    priority = Priority.HIGH
    tries: ClassVar[int] = 3

    pokemon: str = "Pikachu"
    number: int = 25

    def run(self, ctx: Any) -> None: ...


class Train(BackgroundJob[Any]):
    deduplicated = True

    level: int = 1

    def run(self, ctx: Any) -> None: ...


@pytest.fixture(params=SETTLED)
def target(request: pytest.FixtureRequest, database_url: str) -> Iterator[Target]:
    with open_target(SETTLED[request.param], database_url) as target:
        yield target


@pytest.fixture(params=ATOMIC)
def atomic(request: pytest.FixtureRequest, database_url: str) -> Iterator[Target]:
    with open_target(ATOMIC[request.param], database_url) as target:
        yield target


def rows(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute(ROWS).fetchall()


def test_commit_makes_a_job_visible(target: Target, conn: psycopg.Connection) -> None:
    job_id = target.end(Catch(pokemon=HOSTILE).enqueue(target.conn))
    assert rows(conn) == []
    target.commit()
    data = {"pokemon": HOSTILE, "number": 25}
    assert rows(conn) == [(job_id, "catch", data, 10, "field_work", None)]
    assert isinstance(job_id, int)


def test_rollback_makes_jobs_vanish(target: Target, conn: psycopg.Connection) -> None:
    target.end(Catch().enqueue(target.conn))
    target.end(Catch.enqueue_batch(target.conn, [Catch(), Catch()]))
    target.end(Train().enqueue(target.conn))
    target.rollback()
    assert rows(conn) == []


def test_options_are_written(target: Target, conn: psycopg.Connection) -> None:
    enqueue = Catch().enqueue
    target.end(enqueue(target.conn, priority=-3, queue="slow"))
    target.end(enqueue(target.conn, run_at=WHEN, priority=Priority.CRITICAL))
    target.end(enqueue(target.conn, delay=timedelta(hours=2)))
    target.end(Catch.enqueue_batch(target.conn, [Catch()], delay=90, queue="later"))
    target.end(Catch.enqueue_batch(target.conn, [Catch()], run_at=WHEN))
    target.end(Train().enqueue(target.conn, run_at=WHEN, priority=-5))
    target.commit()
    now = conn.execute("SELECT clock_timestamp()").fetchone()
    assert now is not None
    found = [(priority, queue, run_at) for _, _, _, priority, queue, run_at in rows(conn)]
    waits = [found[2][2] - now[0], found[3][2] - now[0]]
    assert found == [
        (-3, "slow", None),
        (20, "field_work", WHEN),
        (10, "field_work", found[2][2]),
        (10, "later", found[3][2]),
        (10, "field_work", WHEN),
        (-5, "default", WHEN),
    ]
    assert timedelta(hours=1, minutes=55) < waits[0] <= timedelta(hours=2)
    assert timedelta(seconds=30) < waits[1] <= timedelta(seconds=90)


@pytest.mark.parametrize("priority", [-32768, 32767])
def test_the_ends_of_the_range_of_priorities_can_be_written(
    target: Target, conn: psycopg.Connection, priority: int
) -> None:
    """By drivers that write parameters into the text, too."""
    target.end(Catch().enqueue(target.conn, priority=priority))
    target.end(Catch().enqueue(target.conn, priority=priority, delay=60))
    target.end(Catch.enqueue_batch(target.conn, [Catch()], priority=priority))
    target.end(Catch.enqueue_batch(target.conn, [Catch()], priority=priority, return_ids=False))
    target.end(Train().enqueue(target.conn, priority=priority))
    target.commit()
    assert [row[3] for row in rows(conn)] == [priority] * 5


def test_a_batch_keeps_its_order(target: Target, conn: psycopg.Connection) -> None:
    jobs = [Catch(number=number) for number in (3, 1, 2)] + [Catch(pokemon=HOSTILE)]
    ids = target.end(Catch.enqueue_batch(target.conn, jobs))
    target.commit()
    written = [(job_id, data["number"]) for job_id, _, data, *_ in rows(conn)]
    assert written == list(zip(ids, [3, 1, 2, 25], strict=True))
    assert rows(conn)[3][2]["pokemon"] == HOSTILE


def test_identical_deduplicated_jobs_collapse(target: Target, conn: psycopg.Connection) -> None:
    first = target.end(Train(level=2).enqueue(target.conn))
    assert isinstance(first, int)
    assert target.end(Train(level=2).enqueue(target.conn)) is None
    levels = [Train(level=level) for level in (3, 2, 4, 3)]
    third, none, fourth, twice = target.end(Train.enqueue_batch(target.conn, levels))
    assert (none, twice) == (None, None)
    target.commit()
    written = {job_id: data["level"] for job_id, _, data, *_ in rows(conn)}
    assert written == {first: 2, third: 3, fourth: 4}


def test_an_empty_batch_is_nothing(target: Target, conn: psycopg.Connection) -> None:
    assert target.end(Catch.enqueue_batch(target.conn, [])) == []
    assert target.end(Train.enqueue_batch(target.conn, iter(()))) == []


def test_bad_input_is_refused_before_anything_is_sent(
    target: Target, conn: psycopg.Connection
) -> None:
    with pytest.raises(InvalidJobError, match=r"field `number`"):
        Catch(number="1").enqueue(target.conn)  # type: ignore[arg-type]
    with pytest.raises(InvalidJobError, match=r"jobs\[1\]: .*field `pokemon`: text with a NUL"):
        Catch.enqueue_batch(target.conn, [Catch(), Catch(pokemon="\0")])
    with pytest.raises(InvalidJobError, match="time zone"):
        Catch().enqueue(target.conn, run_at=datetime(2999, 1, 1))
    # no error of the server's either: the transaction is as good as before
    target.end(Catch().enqueue(target.conn))
    target.commit()
    assert len(rows(conn)) == 1


def test_autocommit_writes_at_once(atomic: Target, conn: psycopg.Connection) -> None:
    single = atomic.end(Catch().enqueue(atomic.conn, delay=60))
    batch = atomic.end(Catch.enqueue_batch(atomic.conn, [Catch(), Catch()]))
    unique = atomic.end(Train().enqueue(atomic.conn))
    assert [row[0] for row in rows(conn)] == [single, *batch, unique]


@pytest.mark.parametrize("job_class", [Catch, Train])
def test_autocommit_writes_a_batch_whole_or_not_at_all(
    atomic: Target, conn: psycopg.Connection, job_class: type[Any]
) -> None:
    conn.execute("ALTER TABLE background_jobs ADD CHECK (data::text NOT LIKE '%13%')")
    name = "number" if job_class is Catch else "level"
    jobs = [job_class(**{name: number}) for number in (11, 12, 13, 14)]
    with pytest.raises(Exception, match="check constraint"):
        atomic.end(job_class.enqueue_batch(atomic.conn, jobs))
    assert rows(conn) == []


def test_django_atomic_decides(database_url: str, conn: psycopg.Connection) -> None:
    with django_database(database_url) as connection:
        from django.db import transaction

        def fail() -> None:
            with transaction.atomic():
                Catch().enqueue(connection)
                raise ZeroDivisionError

        with transaction.atomic():
            kept = Catch().enqueue(connection)
            with pytest.raises(ZeroDivisionError):
                fail()
            assert rows(conn) == []
        with pytest.raises(ZeroDivisionError):
            fail()
    assert [row[0] for row in rows(conn)] == [kept]


def test_django_on_another_database_is_refused() -> None:
    from django.db.backends.sqlite3.base import DatabaseWrapper

    with pytest.raises(UnsupportedConnectionError, match="sqlite"):
        Catch().enqueue(DatabaseWrapper({"NAME": ":memory:"}))


def test_sqlalchemy_on_another_database_is_refused() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection, Session(engine) as session:
        for target in (connection, session, scoped_session(sessionmaker(engine))):
            with pytest.raises(UnsupportedConnectionError, match="is to sqlite: use one of your"):
                Catch().enqueue(target)
        with pytest.raises(UnsupportedConnectionError, match="is to sqlite"):
            Train.enqueue_batch(session, [Train()])
    engine.dispose()


def test_a_session_without_a_database_raises_its_own_error() -> None:
    with pytest.raises(UnboundExecutionError):
        Catch().enqueue(Session())


@pytest.mark.parametrize("job", [Catch(), Train()], ids=["plain", "deduplicated"])
@pytest.mark.parametrize("kind", SETTLED)
def test_missing_tables_get_a_note(kind: str, job: Any, raw_database_url: str) -> None:
    """In the driver's own error, which says only what is not there."""
    with (
        open_target(SETTLED[kind], raw_database_url) as target,
        pytest.raises(Exception, match=r"background_jobs|workers_") as caught,
    ):
        target.end(job.enqueue(target.conn))
    assert any("run `workers migrate`" in note for note in caught.value.__notes__)


def test_a_missing_table_of_somebody_else_gets_none(conn: psycopg.Connection) -> None:
    conn.execute(
        """
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM nothing; END';
        CREATE TRIGGER fail BEFORE INSERT ON background_jobs FOR EACH ROW EXECUTE FUNCTION fail();
        """
    )
    with pytest.raises(psycopg.errors.UndefinedTable, match="nothing") as caught:
        Catch().enqueue(conn)
    assert not hasattr(caught.value, "__notes__")


def test_a_statement_that_somebody_else_has_prepared_gets_a_note(conn: psycopg.Connection) -> None:
    """As through a pooler, where the next statement may find itself on another connection of the server."""
    conn.execute("PREPARE _pg3_0 AS SELECT 1", prepare=False)
    conn.prepare_threshold = 0
    with pytest.raises(psycopg.errors.DuplicatePreparedStatement) as caught:
        Catch().enqueue(conn)
    assert any("prepare_threshold=None" in note for note in caught.value.__notes__)


def test_a_pipeline_of_the_caller_is_joined(conn: psycopg.Connection) -> None:
    with conn.pipeline():
        ids = [Catch(number=number).enqueue(conn) for number in range(3)]
    assert [row[0] for row in rows(conn)] == ids


def test_a_subclass_of_a_connection_is_a_connection(database_url: str) -> None:
    class Traced(psycopg.Connection[Any]): ...

    with Traced.connect(database_url) as traced:
        assert Catch().enqueue(traced) is not None


def test_run_at_in_the_past_is_due_now(conn: psycopg.Connection) -> None:
    Catch().enqueue(conn, run_at=datetime(2000, 1, 1, tzinfo=UTC))
    Catch().enqueue(conn, delay=0)
    assert [row[5] for row in rows(conn)] == [None, None]


def test_the_largest_and_deepest_payload_is_stored(conn: psycopg.Connection) -> None:
    class Dump(BackgroundJob[Any]):
        anything: Any = None
        # jsonb writes 1e300 in full: only the field's type says that it was a float
        floats: list[float] = field(default_factory=list)

        def run(self, ctx: Any) -> None: ...

    deep: list[Any] = []
    for _ in range(98):
        deep = [deep]
    large = "é" * ((1_048_576 - len('{"anything":"","floats":[]}')) // 2)
    jobs = [
        Dump(anything=deep),
        Dump(anything=large),
        Dump(anything=[2**63, -(2**64), 10**300, -0.1, 0.1 + 0.2]),
        Dump(floats=[1.5e300, 5e-324, 1e16, float(2**53)]),
    ]
    Dump.enqueue_batch(conn, jobs)
    stored = conn.execute("SELECT data::text FROM background_jobs ORDER BY position").fetchall()
    assert [describe(Dump).codec.decode(text) for (text,) in stored] == jobs


@pytest.mark.parametrize("job", [Catch(), Train()], ids=["plain", "deduplicated"])
@pytest.mark.parametrize(
    "kind", ["psycopg", "psycopg async", "sqlalchemy psycopg session", "django"]
)
def test_missing_rights_get_a_note(
    kind: str, job: Any, admin: psycopg.Connection, database_url: str
) -> None:
    """Which role to grant: in the driver's own error."""
    with (
        opened_users(admin, database_url) as users,
        open_target(SETTLED[kind], users.urls["readonly"]) as target,
        pytest.raises(Exception, match="permission denied") as caught,
    ):
        target.end(job.enqueue(target.conn))
    assert any("workers_enqueue to enqueue" in note for note in caught.value.__notes__)


def test_denied_by_somebody_else_gets_none(conn: psycopg.Connection) -> None:
    conn.execute(
        """
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE ''permission denied for it'' USING ERRCODE = ''42501''; END';
        CREATE TRIGGER fail BEFORE INSERT ON background_jobs FOR EACH ROW EXECUTE FUNCTION fail();
        """
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
        Catch().enqueue(conn)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("kind", ["psycopg", "psycopg async", "sqlalchemy psycopg session"])
def test_an_encoding_without_the_characters_of_a_job_is_named(
    kind: str, database_url: str, conn: psycopg.Connection
) -> None:
    url = connection_url(database_url, client_encoding="LATIN1")
    refused = r"client_encoding (LATIN1|latin-1|iso8859-1) lacks: connect with client_encoding=UTF8"
    with open_target(SETTLED[kind], url) as target:
        writes: tuple[Callable[[], Any], ...] = (
            lambda: Catch(pokemon="🦊").enqueue(target.conn),
            lambda: Catch.enqueue_batch(target.conn, [Catch(pokemon="🦊")]),
            lambda: Catch.enqueue_batch(target.conn, [Catch(pokemon="🦊")], return_ids=False),
        )
        for write in writes:
            with pytest.raises(InvalidJobError, match=refused) as caught:
                target.end(write())
            assert "🦊" not in str(caught.value)
    assert conn.execute(ROWS).fetchall() == []
