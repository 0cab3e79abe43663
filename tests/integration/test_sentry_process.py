"""Sentry in a process of its own: in any order of import and initialisation, and before any job has run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psycopg
import pytest

PASSWORD = "hunter2"

ORDER = """
import asyncio, sys
from sentry_sdk.transport import Transport

class Prints(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if event := item.get_event():
                print(event["exception"]["values"][-1]["type"], event["tags"]["job_type"])

def init():
    import sentry_sdk
    sentry_sdk.init("https://key@sentry.invalid/1", transport=Prints(), auto_enabling_integrations=False)

if sys.argv[1] == "before":
    init()
from workers import BackgroundJob, Runner

class Boom(BackgroundJob[None]):
    max_attempts = 1

    async def run(self, ctx):
        raise ArithmeticError

runner = Runner(sys.argv[2], None).register_job_type(Boom).shutdown_when_queue_empty()
if sys.argv[1] == "after":
    init()
asyncio.run(runner.run())
"""

NEVER = """
import asyncio, sys
from workers import BackgroundJob, Runner
runner = Runner(sys.argv[2], None).shutdown_when_queue_empty()

class Boom(BackgroundJob[None]):
    max_attempts = 1

    async def run(self, ctx):
        raise ArithmeticError

asyncio.run(runner.register_job_type(Boom).run())
print("sentry_sdk" in sys.modules)
"""


DIED = f"""
import json, logging, sys
import psycopg_pool, sentry_sdk
from sentry_sdk.transport import Transport
import workers
from workers.storage.postgres.connector import Connector

class Prints(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            print(json.dumps(item.get_event()))

sentry_sdk.init("https://key@sentry.invalid/1", transport=Prints(), auto_enabling_integrations=False)
pool = psycopg_pool.AsyncConnectionPool("postgresql://me:{PASSWORD}@127.0.0.1:1/shop", open=False)
try:
    Connector(pool, lambda: None).connect()
except Exception:
    logging.getLogger("workers").critical("the runner died", exc_info=True)
"""


def test_connection_strings_stay_here_before_any_job_has_run() -> None:
    done = subprocess.run([sys.executable, "-c", DIED], capture_output=True, text=True, check=True)
    event = json.loads(done.stdout)
    assert event["logentry"]["message"] == "the runner died"
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    assert frames[-1]["module"].startswith("psycopg")
    assert PASSWORD not in done.stdout


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("before", "ArithmeticError boom\n"),
        ("after", "ArithmeticError boom\n"),
        ("not at all", ""),
        ("not even imported", "False\n"),
    ],
)
def test_order_of_import_and_init_does_not_matter(
    conn: psycopg.Connection, database_url: str, order: str, said: str
) -> None:
    conn.execute(b"INSERT INTO background_jobs (job_type, data, priority) VALUES ('boom', '{}', 0)")
    script = NEVER if order == "not even imported" else ORDER
    done = subprocess.run(
        [sys.executable, "-c", script, order, database_url],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert (done.returncode, done.stdout) == (0, said), done.stderr
    assert conn.execute(b"SELECT count(*) FROM dead_jobs").fetchone() == (1,)
