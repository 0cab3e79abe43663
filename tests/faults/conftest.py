"""Fixtures of the fault tests: a history, worker processes, and a server that has been up for long enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.conftest import MEASURED
from tests.helpers.history import History
from tests.helpers.nursery import Nursery, nursery
from tests.helpers.own_server import NoOwnServerError, OwnServer, own_server
from tests.helpers.processes import Crew, crew
from tests.helpers.server import connection_url
from workers import migrate

Say = Callable[[str], None]


@pytest.fixture(scope="session", autouse=True)
def warm_server(admin: psycopg.Connection) -> None:
    """Right after a start of the server a free lock means nothing (rule 19)."""
    admin.execute(
        "SELECT pg_sleep(greatest(0, 5.1 - extract(epoch FROM now() - pg_postmaster_start_time())))"
    )


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Where everybody who takes part in this test writes down what happens."""
    opened = History(tmp_path / "history.jsonl")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def forks() -> Iterator[Nursery]:
    """Where worker processes come from."""
    with nursery() as opened:
        yield opened


@pytest.fixture
def workers(forks: Nursery, database_url: str, history: History) -> Iterator[Crew]:
    """Worker processes on this test's database."""
    with crew(forks, database_url, history) as opened:
        yield opened


@pytest.fixture(scope="module")
def server_to_crash() -> Iterator[OwnServer]:
    """A server of these tests' own."""
    try:
        with own_server() as started:
            yield started
    except NoOwnServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def crash_url(server_to_crash: OwnServer, request: pytest.FixtureRequest) -> str:
    """A URL whose connections see a schema of this test's own, with the migrations applied, on `server_to_crash`."""
    name = f"test_{abs(hash(request.node.name))}"
    with psycopg.connect(server_to_crash.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    url = connection_url(server_to_crash.dsn, options=f"-csearch_path={name}")
    migrate(url)
    return url


@pytest.fixture
def say(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Say:
    """Print a measurement past the capture of output, at the end of the run."""
    measured = pytestconfig.stash.setdefault(MEASURED, [])
    return lambda text: measured.append(f"{request.node.name}: {text}")
