"""The search for a test server: quick, quiet, and with DSNs that every library understands."""

from __future__ import annotations

import socket
import time

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.helpers import matrix
from tests.helpers.server import (
    URL_VARIABLE,
    NoServerError,
    connection_url,
    docker_answers,
    find_server,
)


@pytest.mark.parametrize(
    ("dsn", "url"),
    [
        ("dbname=app", "postgresql:///app"),
        ("postgresql://u:p%40ss@db:5433/app", "postgresql://u:p%40ss@db:5433/app"),
        ("host=/run/pg port=5 user=u", "postgresql://u@/?host=%2Frun%2Fpg&port=5"),
        ("postgresql://db/app?sslmode=require", "postgresql://db/app?sslmode=require"),
    ],
)
def test_connection_url(dsn: str, url: str) -> None:
    assert connection_url(dsn) == url
    assert conninfo_to_dict(url) == conninfo_to_dict(dsn)


def test_connection_url_joins_options() -> None:
    url = connection_url("dbname=app options='-c jit=off'", options="-csearch_path=x")
    assert conninfo_to_dict(url)["options"] == "-c jit=off -csearch_path=x"


def test_silent_docker_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        started = time.monotonic()
        assert not docker_answers()
        assert time.monotonic() - started < 2


def test_unreachable_server_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "postgresql://127.0.0.1:1/none")
    with pytest.raises(NoServerError, match=URL_VARIABLE), find_server():
        pass


def test_two_major_versions_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    reachable = {"embedded:": 18, matrix.LOCAL[0]: 18, matrix.LOCAL[1]: 15}
    monkeypatch.setattr(matrix, "major_version", reachable.get)
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.delenv(f"{URL_VARIABLE}_2", raising=False)
    assert matrix.choose_servers() == ["embedded:", matrix.LOCAL[1]]

    monkeypatch.setenv(URL_VARIABLE, matrix.LOCAL[1])
    assert matrix.choose_servers() == [matrix.LOCAL[1], "embedded:"]

    monkeypatch.setenv(f"{URL_VARIABLE}_2", "postgresql://other")
    assert matrix.choose_servers() == [matrix.LOCAL[1], "postgresql://other"]
