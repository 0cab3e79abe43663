"""Where a runner lives: a process of its own (`run`), or a thread in a synchronous program (`start_in_thread`)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.helpers.running import PATIENCE, World, eventually, make_runner
from workers import BackgroundJob, ConfigurationError, MigrationError
from workers.runtime import crew

ROOT = Path(__file__).parents[2]
ROWS = "SELECT retries, session_id IS NULL FROM background_jobs"
SESSIONS = "SELECT count(*) FROM worker_sessions"
PROGRAM = """
import asyncio, logging, signal, sys
from workers import BackgroundJob, Runner

class Tell(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), flush=True)

log = logging.getLogger("workers")
log.setLevel(logging.INFO)
log.addHandler(tell := Tell())
tell.addFilter(lambda record: record.getMessage().startswith("SIG"))

class Hold(BackgroundJob[None]):
    seconds: float
    async def run(self, ctx):
        print("runs", flush=True)
        try:
            await asyncio.sleep(self.seconds)
            print("done", flush=True)
        except asyncio.CancelledError:
            print("interrupted", flush=True)
            raise

async def main():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    runner = Runner(sys.argv[1], None, grace=60).register_job_type(Hold)
    print("left:", await runner.run(), flush=True)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))

asyncio.run(main())
print("end", flush=True)
"""

#: An application with a handler of its own for SIGTERM, and one that a job puts in its place for SIGINT.
OWN_HANDLERS = """
import asyncio, os, signal, sys, uvloop
from workers import BackgroundJob, Runner
from workers.storage.memory import MemoryStorage
from workers.telemetry import SessionStarted, subscribe

class Idle(BackgroundJob[None]):
    async def run(self, ctx): ...

def later(number, frame):
    print("SIGINT taken", flush=True)

def ready(event):
    signal.signal(signal.SIGINT, later)
    os.kill(os.getpid(), signal.SIGTERM)

async def main():
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    runner = Runner(MemoryStorage(), None).register_job_type(Idle)
    with subscribe(ready, SessionStarted):
        print("left:", await runner.run(), flush=True)
    told.clear()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(20):
        await told.wait()
    print("SIGTERM taken", flush=True)
    os.kill(os.getpid(), signal.SIGINT)

loop_factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else None
with asyncio.Runner(loop_factory=loop_factory) as loop:
    loop.run(main())
"""


class Hold(BackgroundJob[None]):
    seconds: float

    async def run(self, ctx: None) -> None: ...


class Note(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("ran")
        ctx.signal("ran")


class HoldInThread(BackgroundJob[World]):
    def run(self, ctx: World) -> None:
        ctx.signal("runs")
        ctx.wait_in_thread("may end")


@pytest.fixture
def program(database_url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a runner; its output, line by line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, database_url],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await asyncio.to_thread(process.stdout.readline)).strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_jobs_finish(
    program: subprocess.Popen[str], conn: psycopg.Connection, number: signal.Signals
) -> None:
    """`await runner.run()`: SIGTERM and SIGINT shut down gracefully; the handlers that were there before come back."""
    Hold(seconds=0.5).enqueue(conn)
    assert await line(program) == "runs"
    Hold(seconds=60).enqueue(conn, delay=0.2)
    program.send_signal(number)
    assert await line(program) == f"{number.name}: finishing the jobs that run"
    assert [await line(program) for _ in range(3)] == ["done", "left: []", "end"]
    assert await asyncio.to_thread(program.wait, PATIENCE) == 0
    assert conn.execute(ROWS).fetchall() == [(0, True)]
    assert conn.execute(SESSIONS).fetchone() == (0,)


async def test_a_second_signal_does_not_wait(
    program: subprocess.Popen[str], conn: psycopg.Connection
) -> None:
    """Fault 20: it interrupts the running jobs, which go back uncounted, and the process ends."""
    Hold(seconds=60).enqueue(conn)
    assert await line(program) == "runs"
    program.send_signal(signal.SIGTERM)
    assert await line(program) == "SIGTERM: finishing the jobs that run"
    program.send_signal(signal.SIGINT)
    assert await line(program) == "SIGINT again: stopping the jobs that run"
    assert [await line(program) for _ in range(3)] == ["interrupted", "left: []", "end"]
    assert await asyncio.to_thread(program.wait, PATIENCE) == 0
    assert conn.execute(ROWS).fetchall() == [(0, True)]
    assert conn.execute(SESSIONS).fetchone() == (0,)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_applications_own_signal_handlers_stay(loop: str) -> None:
    """Those of its event loop too: when the runner has ended, a signal is the application's again."""
    done = subprocess.run(
        [sys.executable, "-c", OWN_HANDLERS, loop],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.stdout.splitlines() == ["left: []", "SIGTERM taken", "SIGINT taken"], done.stderr
    assert done.returncode == 0


async def test_cancelling_run_ends_the_runner(database_url: str, conn: psycopg.Connection) -> None:
    """Nobody else has its handle: the jobs are interrupted, and when `run` has ended the runner has."""

    class Wait(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.signal("runs")
            await asyncio.sleep(60)

    Wait().enqueue(conn)
    world = World()
    running = asyncio.create_task(make_runner(database_url, Wait, context=world).run())
    await world.wait("runs")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(PATIENCE):
            await running
    assert conn.execute(ROWS).fetchall() == [(0, True)]
    assert conn.execute(SESSIONS).fetchone() == (0,)


async def test_run_without_the_main_thread(database_url: str, conn: psycopg.Connection) -> None:
    """Where no signal handlers can be installed there are none."""
    Note().enqueue(conn)
    world = World()
    runner = make_runner(database_url, Note, context=world).shutdown_when_queue_empty()
    assert await asyncio.to_thread(lambda: asyncio.run(runner.run())) == []
    assert world.seen == ["ran"]


def test_a_runner_in_a_thread(database_url: str, conn: psycopg.Connection) -> None:
    """For synchronous programs: ready when it returns, ended when its block is left."""
    world = World()
    with make_runner(database_url, Note, context=world).start_in_thread() as thread:
        assert conn.execute(SESSIONS).fetchone() == (1,)
        Note().enqueue(conn)
        world.wait_in_thread("ran")
        with pytest.raises(TimeoutError):
            thread.wait_for_shutdown(0.01)
        soon: Any = "soon"
        with pytest.raises(ConfigurationError, match="grace is a str"):
            thread.shutdown(grace=soon)
        assert repr(thread).startswith("<RunnerThread of <RunnerHandle session ")
        assert repr(thread).endswith(", running>>")
    assert thread.wait_for_shutdown() == []
    thread.shutdown()
    assert world.seen == ["ran"]
    assert conn.execute(SESSIONS).fetchone() == (0,)


def test_a_thread_raises_what_kept_it_from_starting(raw_database_url: str) -> None:
    """In the caller."""
    with pytest.raises(MigrationError, match="workers migrate"):
        make_runner(raw_database_url, Note).start_in_thread()


async def test_a_runner_in_a_thread_names_the_jobs_that_would_not_end(
    database_url: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the grace, and not only when they have ended."""
    monkeypatch.setattr(crew, "LAST_SECONDS", 0.1)
    job_id = HoldInThread().enqueue(conn)
    world = World()
    runner = make_runner(database_url, HoldInThread, context=world)
    thread = await asyncio.to_thread(runner.start_in_thread)
    await world.wait("runs")
    thread.shutdown(grace=0.05)
    assert await asyncio.to_thread(thread.wait_for_shutdown, PATIENCE) == [job_id]
    assert conn.execute(ROWS).fetchall() == [(0, False)]
    world.signal("may end")
    await eventually(conn, SESSIONS, [(0,)])
    assert conn.execute(ROWS).fetchall() == []
