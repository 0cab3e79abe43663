"""What is said when jobs with secrets can't be written: drivers quote the row, or the parameters; nobody else sees them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from tests.helpers.enqueue_targets import ATOMIC, SETTLED, Target, open_target
from workers import BackgroundJob, InvalidJobError, Secret
from workers.storage import open_storage

CANARY = "sparrow'finch\""
PIECES = ("sparrow", "finch")

KINDS = {name: SETTLED[name] for name in SETTLED if "psycopg " not in name} | {
    f"{name} atomic": ATOMIC[name] for name in ATOMIC
}
for name in ("psycopg ClientCursor", "psycopg async cursor", "sqlalchemy psycopg session"):
    KINDS[name] = SETTLED[name]


class Reset(BackgroundJob[Any]):
    token: Secret[str]

    def run(self, ctx: Any) -> None: ...


class ResetOnce(Reset):
    deduplicated = True


class Plain(BackgroundJob[Any]):
    token: str

    def run(self, ctx: Any) -> None: ...


class Picky(BackgroundJob[Any]):
    token: Secret[str]
    number: int = 0

    def __post_init__(self) -> None:
        if self.token == CANARY:
            raise ValueError(f"{self.token} is not fine")

    def run(self, ctx: Any) -> None: ...


WAYS: dict[str, Callable[[Any], Any]] = {
    "one": lambda conn: Reset(token=CANARY).enqueue(conn),
    "later": lambda conn: Reset(token=CANARY).enqueue(conn, delay=5),
    "deduplicated": lambda conn: ResetOnce(token=CANARY).enqueue(conn),
    "batch": lambda conn: Reset.enqueue_batch(conn, [Reset(token=CANARY)] * 2),
    "bulk": lambda conn: Reset.enqueue_batch(conn, [Reset(token=CANARY)] * 2, return_ids=False),
}


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, database_url: str) -> Iterator[Target]:
    with open_target(KINDS[request.param], database_url) as target:
        yield target


def refuse_all(conn: psycopg.Connection) -> None:
    conn.execute("ALTER TABLE background_jobs ADD CONSTRAINT no_jobs CHECK (false)")


def in_full(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)


def test_on_every_connection(target: Target, conn: psycopg.Connection) -> None:
    refuse_all(conn)
    for name, enqueue in WAYS.items():
        with pytest.raises(Exception, match="no_jobs") as caught:
            target.end(enqueue(target.conn))
        text = in_full(caught.value)
        assert not any(piece in text for piece in PIECES), name
        if hasattr(target.owner, "rollback"):
            target.rollback()


async def test_on_a_storage(conn: psycopg.Connection, database_url: str) -> None:
    refuse_all(conn)
    async with AsyncConnectionPool(database_url, open=False) as pool, open_storage(pool) as storage:
        for name in ("one", "batch"):
            with pytest.raises(Exception, match="no_jobs") as caught:
                await WAYS[name](storage)
            assert not any(piece in in_full(caught.value) for piece in PIECES)


def test_nobody_elses_exception_is_touched(conn: psycopg.Connection) -> None:
    refuse_all(conn)
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        with pytest.raises(psycopg.Error, match="no_jobs") as caught:
            WAYS["one"](conn)
    assert "of two\nlines" in in_full(caught.value)


def test_others_say_all_that_they_have_to_say(conn: psycopg.Connection) -> None:
    refuse_all(conn)
    with pytest.raises(psycopg.Error, match="no_jobs") as caught:
        Plain(token=CANARY).enqueue(conn)
    assert "Failing row contains" in in_full(caught.value)


def test_what_does_not_fit(conn: psycopg.Connection) -> None:
    """Refused before anything is sent."""
    broken: Any = Picky(token="fine")
    broken.token = CANARY
    wrong: Any = Picky(token="fine", number=CANARY)  # type: ignore[arg-type]  # on purpose
    for job in (broken, wrong):
        for enqueue in (job.enqueue, lambda conn, job=job: Picky.enqueue_batch(conn, [job])):
            with pytest.raises(InvalidJobError) as caught:
                enqueue(conn)
            assert not any(piece in in_full(caught.value) for piece in PIECES)
