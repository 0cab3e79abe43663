"""The example shop, served for real: an order's job runs, a rolled back order leaves none, and SIGTERM ends it in order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import psycopg
import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 30

# Remembers every job that was committed, also one that has run already.
WITNESS = """
CREATE TABLE witnessed (id bigint);
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO witnessed VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER witness AFTER INSERT ON background_jobs FOR EACH ROW EXECUTE FUNCTION witness();
"""


@pytest.fixture
def process(database_url: str) -> Iterator[subprocess.Popen[str]]:
    """The application, on a free port."""
    command = [sys.executable, "-m", "examples.webapp", "--port", "0"]
    environment = os.environ | {"DATABASE_URL": database_url}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as started:
        yield started
        started.kill()


@pytest.fixture
def client(process: subprocess.Popen[str]) -> Iterator[httpx.Client]:
    """A client of the application, which has started."""
    assert process.stderr is not None
    with httpx.Client(
        base_url=_address(process.stderr), timeout=SECONDS, trust_env=False
    ) as opened:
        yield opened


def _address(log: IO[str]) -> str:
    """What uvicorn says when it listens; the process's end ends the search."""
    lines = []
    for line in log:
        lines.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    pytest.fail("".join(lines))


def order(client: httpx.Client, item: str = "potion", quantity: int = 2) -> httpx.Response:
    wish = {"email": "ash@example.com", "item": item, "quantity": quantity}
    return client.post("/orders", json=wish)


def count(conn: psycopg.Connection, table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_order_sends_its_receipt(client: httpx.Client) -> None:
    placed = order(client)
    assert placed.status_code == 201
    shown = client.get(placed.headers["Location"], params={"wait": 20}).json()
    assert shown["receipt"] == "ash@example.com: 2 x potion"
    everything = client.get("/").json()
    assert everything["stock"]["potion"] == 98
    assert everything["orders"] == [shown]


def test_rolled_back_order_leaves_nothing(conn: psycopg.Connection, client: httpx.Client) -> None:
    conn.execute(WITNESS.encode())
    refused = order(client, "master ball")
    assert refused.status_code == 409
    assert "not that many left" in refused.text
    row = conn.execute("SELECT last_value, is_called FROM background_jobs_id_seq").fetchone()
    assert row == (1, True)  # a job's id was drawn, so it had been enqueued
    assert count(conn, "witnessed") == count(conn, "shop_orders") == 0
    assert client.get("/").json()["stock"]["master ball"] == 1
    assert order(client, "master ball", 1).status_code == 201
    assert count(conn, "witnessed") == 1


def test_bad_requests_are_answered(client: httpx.Client) -> None:
    assert client.post("/orders", content=b"potion").status_code == 422
    assert order(client, quantity=0).status_code == 422
    assert client.get("/orders/1").status_code == 404
    assert client.get("/orders/1", params={"wait": "long"}).status_code == 422


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM")
def test_sigterm_shuts_down_in_order(
    conn: psycopg.Connection, process: subprocess.Popen[str], client: httpx.Client
) -> None:
    assert order(client).status_code == 201
    assert count(conn, "worker_sessions") == 1
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, log
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
    assert count(conn, "worker_sessions") == 0
    held = "SELECT count(*) FROM background_jobs WHERE session_id IS NOT NULL"
    assert conn.execute(held).fetchone() == (0,)
