"""The command `workers`, as a process: what it does, says and exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from workers import BackgroundJob, migrations

SECRET = "hunter2"

APP = """
import asyncio, logging, sys, time
from contextlib import asynccontextmanager
from workers import BackgroundJob, Runner
from workers.runtime import supervisor

supervisor._LAST_SECONDS = 0.1  # patience with a thread that never ends

class Asks(BackgroundJob):
    async def run(self, ctx):
        print("asks", flush=True)
        print("was told", await asyncio.to_thread(sys.stdin.readline), flush=True)

class Waits(BackgroundJob):
    async def run(self, ctx):
        print("waits", flush=True)
        await asyncio.Event().wait()

class WaitsInThread(BackgroundJob):
    def run(self, ctx):
        print("waits", flush=True)
        time.sleep(600)

class Blocks(BackgroundJob):
    async def run(self, ctx):
        time.sleep(600)

class Logs(BackgroundJob):
    async def run(self, ctx):
        logging.getLogger("shop").info("sold to %s", ctx)

def runner(database_url):
    made = Runner(database_url, None, loop_stall_limit=0.5)
    for job_class in (Asks, Waits, WaitsInThread, Blocks):
        made.register_job_type(job_class)
    return made

@asynccontextmanager
async def until_empty(database_url):
    yield Runner(database_url, "somebody").register_job_type(Logs).shutdown_when_queue_empty()
    print("closed", flush=True)

async def own_logging(database_url):
    logging.basicConfig(format="MINE %(message)s", level="INFO")
    return Runner(database_url, None).register_job_type(Logs).shutdown_when_queue_empty()

async def without_jobs():
    return Runner("postgresql://shop:hunter2@db.invalid/shop", None)

def wants_more(database_url, mailer): ...
def returns_nothing(): ...
def fails(): raise RuntimeError("no mailer at postgresql://shop:hunter2@db.invalid/shop")
"""


class Asks(BackgroundJob[None]):
    async def run(self, ctx: None) -> None: ...


class Waits(Asks): ...


class WaitsInThread(Asks): ...


class Blocks(Asks): ...


class Logs(Asks): ...


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Process(subprocess.Popen[str]):
    """A `workers run` of which both outputs are read as one."""

    def wait_for(self, text: str) -> str:
        """Read until a line has `text` in it; returns everything read."""
        assert self.stdout is not None
        read = ""
        for line in self.stdout:
            read += line
            if text in line:
                return read
        pytest.fail(f"ended without saying {text!r}:\n{read}")

    def rest(self) -> str:
        """Read to the end, and wait for it."""
        output, _ = self.communicate()
        return output


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A working directory with an application in it."""
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "broken.py").write_text("import there_is_no_such_thing")
    (tmp_path / "wrong.py").write_text("x = (")
    return tmp_path


@pytest.fixture
def environment() -> dict[str, str]:
    """No database but the one that a test names; warnings are errors here, too."""
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return inherited | {"PYTHONWARNINGS": "error"}


class Shop:
    """Calls `workers` in the directory of the application."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment
        self.processes: list[Process] = []

    def call(self, *args: str, **environment: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "workers", *args],
            cwd=self.directory,
            env=self.environment | environment,
            capture_output=True,
            text=True,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def run(self, database_url: str) -> Process:
        process = Process(
            [sys.executable, "-m", "workers", "run", "--app", "shop:runner"],
            cwd=self.directory,
            env=self.environment | {"DATABASE_URL": database_url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def shop(directory: Path, environment: dict[str, str]) -> Iterator[Shop]:
    made = Shop(directory, environment)
    yield made
    for process in made.processes:
        with process:  # closes its pipes
            process.kill()


def rows(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Whether each job is claimed, and its counters."""
    query = b"SELECT session_id IS NOT NULL, retries, crashes FROM background_jobs ORDER BY id"
    return conn.execute(query).fetchall()


# -------------------------------------------------------------------------------------------------------------- migrate


def test_migrate_lists_what_it_applied(shop: Shop, raw_database_url: str) -> None:
    names = [migration.name for migration in migrations._load()]
    first = shop.call("migrate", DATABASE_URL=raw_database_url)
    assert first == (0, "".join(f"applied {name}\n" for name in names), "")
    migrations.check_migrations(raw_database_url)
    again = shop.call("migrate", "--database-url", raw_database_url)
    assert again == (0, "nothing to do: the tables are up to date\n", "")


def test_sql_needs_no_database(shop: Shop) -> None:
    assert shop.call("migrate", "--sql") == (0, migrations.migrations_sql(), "")


def test_embedded_server_lasts_as_long_as_the_command(shop: Shop) -> None:
    with tempfile.TemporaryDirectory(prefix="workers-test-") as directory:
        data = Path(directory).resolve() / "data"
        ended = shop.call("migrate", "--database-url", f"embedded:{data}")
        assert (ended.code, ended.err) == (0, "")
        assert (data / "PG_VERSION").exists()
        assert not (data / "postmaster.pid").exists()


# ---------------------------------------------------------------------------------------------------------------- stats


def test_stats_as_json_is_one_line_with_stable_keys(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    Asks.enqueue_batch(conn, [Asks(), Asks()], queue="emails")
    Waits().enqueue(conn, queue="reports", delay=60)
    ended = shop.call("stats", "--json", DATABASE_URL=database_url)
    assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 1)
    found = json.loads(ended.out)
    nothing = {
        "scheduled": 0,
        "available": 0,
        "running": 0,
        "retryable": 0,
        "dead": 0,
        "archived": 0,
        "oldest": 0.0,
    }
    assert found["queues"]["reports"] == nothing | {"scheduled": 1}
    assert found["queues"]["emails"].pop("oldest") > 0
    assert found["queues"]["emails"] == {
        name: 2 if name == "available" else 0 for name in nothing if name != "oldest"
    }
    assert found["total"].keys() == nothing.keys()
    assert (found["total"]["available"], found["total"]["scheduled"]) == (2, 1)


def test_stats_for_people(shop: Shop, database_url: str, conn: psycopg.Connection) -> None:
    assert shop.call("stats", DATABASE_URL=database_url).out == "There are no jobs.\n"
    Asks.enqueue_batch(conn, [Asks(), Asks()], queue="a-queue-with-a-long-name-" + "x" * 70)
    Waits().enqueue(conn, queue="reports", delay=60)
    _, out, err = shop.call("stats", DATABASE_URL=database_url)
    lines = [line.split() for line in out.splitlines() if line.strip(" ─")]
    head, long, reports, total = lines
    assert " ".join(head) == "queue available oldest running scheduled retryable dead archived"
    assert long[0].endswith("x" * 70)
    assert long[2] == "0:00:00"
    assert (reports[2], total[1], total[4]) == ("0", "2", "1")
    assert err == ""


def test_stats_says_what_is_missing(shop: Shop, raw_database_url: str) -> None:
    code, out, err = shop.call("stats", DATABASE_URL=raw_database_url)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "run `workers migrate`" in err


# ------------------------------------------------------------------------------------------------------------------ run


def test_first_signal_lets_the_job_finish(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    Asks().enqueue(conn)
    process = shop.run(database_url)
    process.wait_for("asks")
    process.send_signal(signal.SIGTERM)
    process.wait_for("SIGTERM: finishing")
    Waits().enqueue(conn)  # comes too late
    assert process.stdin is not None
    process.stdin.write("to go on\n")
    process.stdin.flush()
    process.wait_for("was told to go on")
    process.rest()
    assert process.returncode == 0
    assert rows(conn) == [(False, 0, 0)]


def test_second_signal_gives_the_job_back_uncounted(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    Waits().enqueue(conn)
    process = shop.run(database_url)
    process.wait_for("waits")
    process.send_signal(signal.SIGINT)
    process.wait_for("SIGINT: finishing")
    assert rows(conn) == [(True, 0, 0)]
    process.send_signal(signal.SIGTERM)
    process.rest()
    assert process.returncode == 0
    assert rows(conn) == [(False, 0, 0)]


def test_job_that_would_not_stop_is_left_behind(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    job_id = WaitsInThread().enqueue(conn)
    process = shop.run(database_url)
    process.wait_for("waits")
    process.send_signal(signal.SIGTERM)
    process.wait_for("SIGTERM: finishing")
    process.send_signal(signal.SIGTERM)
    assert f"jobs that would not stop: [{job_id}]" in process.rest()
    assert process.returncode == 3
    assert rows(conn) == [(True, 0, 0)]  # its claim stands until the session is found dead


def test_loop_that_stalls_ends_the_process(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    job_id = Blocks().enqueue(conn)
    process = shop.run(database_url)
    output = process.rest()
    assert process.returncode == 4
    assert f"{job_id} (blocks)" in output
    assert "time.sleep(600)" in output
    assert "Fatal" not in output


def test_context_manager_json_logs_and_uvloop(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    job_id = Logs().enqueue(conn)
    code, out, err = shop.call(
        *("run", "--app", "shop:until_empty", "--database-url", database_url),
        *("--uvloop", "--log-format", "json", "--log-level", "debug"),
    )
    assert (code, out) == (0, "closed\n"), err
    entries = [json.loads(line) for line in err.splitlines()]
    about_the_job = [entry for entry in entries if "job_id" in entry]
    assert [(entry["logger"], entry["level"]) for entry in about_the_job] == [
        ("workers.jobs", "debug"),
        ("shop", "info"),
        ("workers.jobs", "debug"),
    ]
    start, own, end = about_the_job
    assert own["message"] == "sold to somebody"
    assert end["outcome"] == "completed"
    fields = {"job_id": job_id, "job_type": "logs", "queue": "default", "attempt": 1}
    for entry in (start, own, end):
        assert fields.items() <= entry.items()
        assert entry["session"] == start["session"] > 0


def test_applications_own_logging_is_kept(shop: Shop, database_url: str) -> None:
    code, _, err = shop.call("run", "--app", "shop:own_logging", DATABASE_URL=database_url)
    assert code == 0
    assert "MINE runner started" in err
    assert all(line.startswith("MINE ") for line in err.splitlines())


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing.there:x", "there is no module 'nothing'"),
        ("workers.tasks:x", "the name `workers` is this library's"),
        ("broken:x", "broken can't be imported: ModuleNotFoundError in broken.py:1"),
        ("wrong:x", "wrong can't be imported: SyntaxError"),
        ("shop:nothing", "module shop has no 'nothing'"),
        ("shop:sys.path", "it is of type list"),
        ("shop:Asks", "it is a class"),
        ("shop:returns_nothing", "it returned None"),
        ("shop:wants_more", "wants 'mailer'"),
        ("shop:without_jobs", "no job type is registered"),
        ("shop:fails", "RuntimeError in shop.py:"),
    ],
)
def test_bad_app_is_one_clear_line(shop: Shop, spec: str, message: str) -> None:
    code, out, err = shop.call("run", "--app", spec)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1
    assert SECRET not in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run"], "Missing option '--app'"),
        (["run", "--app", "shop"], "give it as module:attr"),
        (["run", "--app", "shop:runner"], "give --database-url or set DATABASE_URL"),
        (["run", "--app", "shop:fails", "--database-url", "x"], "brings its own"),
        (["stats"], "Give --database-url or set DATABASE_URL"),
    ],
)
def test_wrong_usage_exits_with_2(shop: Shop, args: list[str], message: str) -> None:
    code, out, err = shop.call(*args)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_debug_shows_the_traceback(shop: Shop) -> None:
    for flag in (["--debug"], ["--log-level", "debug"]):
        code, _, err = shop.call("run", "--app", "shop:fails", *flag)
        assert code == 1
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1].startswith("Error: RuntimeError in shop.py:")
        assert SECRET not in err


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://shop:{SECRET}@127.0.0.1:1/shop",
        f"postgresql+psycopg://shop:{SECRET}@127.0.0.1:1/shop",
        f"host=127.0.0.1 port=1 password={SECRET}",
        f"postgresql://shop:{SECRET[:3]}@{SECRET}@127.0.0.1:1/shop",
        f"postgresql://shop:x/{SECRET}@127.0.0.1/shop",
        f"mysql://shop:{SECRET}@127.0.0.1/shop",
    ],
)
def test_password_is_never_shown(shop: Shop, url: str) -> None:
    code, out, err = shop.call("stats", DATABASE_URL=url)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the database" in err
    assert SECRET not in err


def test_password_is_not_in_tracebacks(shop: Shop) -> None:
    url = f"postgresql://shop:{SECRET}@127.0.0.1:1/shop"
    for command in ("stats", "migrate"):
        err = shop.call(command, "--debug", DATABASE_URL=url).err
        assert SECRET not in err
