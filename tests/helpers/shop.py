"""The command `workers` as a process, in a directory with a small application."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from workers import BackgroundJob
from workers.cli.commands import workers

SECRET = "hunter2"

APP = """
import asyncio, ctypes, logging, os, sys, threading, time
from contextlib import asynccontextmanager
from workers import BackgroundJob, Runner
from workers.runtime import crew
from workers.runtime.session import SessionKeeper

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

class HoldsGil(BackgroundJob):
    async def run(self, ctx):
        ctypes.PyDLL(None).poll(None, 0, 600_000)

class Floods(BackgroundJob):
    async def run(self, ctx):
        while True:
            logging.getLogger("shop").info("more than a pipe holds " * 10_000)

class EndsLoop(BackgroundJob):
    how: str
    async def run(self, ctx):
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.stop if self.how == "stop" else sys.exit)
        await asyncio.Event().wait()

class LeavesBehind(BackgroundJob):
    how: str
    async def run(self, ctx):
        if self.how == "thread":
            threading.Thread(target=time.sleep, args=[600], name="endless").start()
        else:
            ctx.append(asyncio.create_task(self.stubborn()))
            await asyncio.sleep(0)
    async def stubborn(self):
        while True:
            try: await asyncio.sleep(600)
            except asyncio.CancelledError: pass

class ExitsInOrder(BackgroundJob):
    max_crashes = 1
    async def run(self, ctx):
        os._exit(0)

class KillsRunner(BackgroundJob):
    def run(self, ctx):
        def fail(keeper): raise RuntimeError("no clock")
        SessionKeeper._tick = fail
        time.sleep(600)

class Logs(BackgroundJob):
    async def run(self, ctx):
        logging.getLogger("shop").info("sold to %s", ctx)

def runner(database_url):
    crew.LAST_SECONDS = 0.1  # patience with a thread that never ends
    made = Runner(database_url, None, loop_stall_limit=0.5)
    for job_class in (Asks, Waits, WaitsInThread, Blocks, HoldsGil, Floods, ExitsInOrder, Logs):
        made.register_job_type(job_class)
    return made

def dies(database_url):
    crew.LAST_SECONDS = 0.1
    return Runner(database_url, None, grace=0).register_job_type(KillsRunner)

def starts_late(database_url):
    print("starts", flush=True)
    time.sleep(600)

def bad_jobs(database_url):
    made = Runner(database_url, []).register_job_type(EndsLoop).register_job_type(LeavesBehind)
    return made.shutdown_when_queue_empty()

@asynccontextmanager
async def until_empty(database_url):
    yield Runner(database_url, "somebody").register_job_type(Logs).shutdown_when_queue_empty()
    os.write(1, b"closed\\n")  # whole lines, also where several write at once

@asynccontextmanager
async def fails_at_the_end(database_url):
    yield bad_jobs(database_url)
    raise OSError("the mailer can't be closed")

async def own_logging(database_url):
    logging.basicConfig(format="MINE %(message)s", level="INFO")
    return Runner(database_url, None).register_job_type(Logs).shutdown_when_queue_empty()

async def silent(database_url):
    logging.basicConfig(handlers=[logging.NullHandler()])
    return Runner(database_url, None).register_job_type(Logs)

async def without_jobs():
    return Runner("postgresql://shop:hunter2@db.invalid/shop", None)

def wants_more(database_url, mailer): ...
def returns_nothing(): ...
def fails(): raise RuntimeError("no mailer at postgresql://shop:hunter2@db.invalid/shop")
"""

#: What could be meant by a wrong name in `made:...` is found by its type, its annotation, its name or its parameter.
MADE = """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from workers import Runner
from shop import bad_jobs

ready = Runner("postgresql://db.invalid/shop", None)

@asynccontextmanager
async def build() -> "AsyncIterator[Runner[None]]": yield ready

def make_runner(): return ready
def shop(database_url): return ready

def send_mail(): ...
def give_to_runner(mailer): ...
def _runner(): ...
"""


#: In Python's development mode asyncio tells what it does, and of whatever takes a tenth of a second, as anything may on a
#: busy machine; its other warnings are to be seen.
QUIET = """
import logging
def is_no_delay(record): return not record.getMessage().startswith("Executing ")
logger = logging.getLogger("asyncio")
logger.setLevel("WARNING")
logger.addFilter(is_no_delay)
"""


class Asks(BackgroundJob[None]):
    async def run(self, ctx: None) -> None: ...


class Waits(Asks): ...


class WaitsInThread(Asks): ...


class Blocks(Asks): ...


class HoldsGil(Asks): ...


class Floods(Asks): ...


class ExitsInOrder(Asks): ...


class KillsRunner(Asks): ...


class EndsLoop(Asks):
    how: str


class LeavesBehind(Asks):
    how: str


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


class Shop:
    """Calls `workers` in the directory of the application."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # no database but the one that a test names; warnings are errors here, too
        inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        self.environment = inherited | {"PYTHONWARNINGS": "error"}
        if sys.flags.dev_mode:
            (directory / "sitecustomize.py").write_text(QUIET)
            self.environment["PYTHONPATH"] = str(directory)
            exec(QUIET, {})  # and for `invoke`
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

    def invoke(self, *args: str, **environment: str) -> Ended:
        """The same as `call`, in this process: a third of a second less."""
        path, modules = list(sys.path), set(sys.modules)
        try:
            with contextlib.chdir(self.directory):
                runner = CliRunner(env={"DATABASE_URL": None})
                result = runner.invoke(workers, args, env=environment)
        finally:
            sys.path[:] = path
            for name in (sys.modules.keys() - modules) & {"shop", "broken", "made", "wrong"}:
                del sys.modules[name]
        return Ended(result.exit_code, result.stdout, result.stderr)

    def run(
        self,
        database_url: str,
        *args: str,
        app: str = "shop:runner",
        stderr: int = subprocess.STDOUT,
    ) -> Process:
        process = Process(
            [sys.executable, "-m", "workers", "run", "--app", app, *args],
            cwd=self.directory,
            env=self.environment | {"DATABASE_URL": database_url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        self.processes.append(process)
        return process


@contextlib.contextmanager
def opened_shop(directory: Path) -> Iterator[Shop]:
    """Write the application into `directory`; what runs there at the end is killed."""
    (directory / "shop.py").write_text(APP)
    (directory / "broken.py").write_text("import there_is_no_such_thing")
    (directory / "made.py").write_text(MADE)
    (directory / "wrong.py").write_text("x = (")
    made = Shop(directory)
    try:
        yield made
    finally:
        for process in made.processes:
            with process:  # closes its pipes
                process.kill()
