"""A runner in a process of its own, to be killed (see tests/helpers/nursery.py, which starts it).

Writes events to standard output (see tests/helpers/history.py). Takes commands on standard input, one a line: `open` lets
held jobs go, `arm claim=stop` arms failpoints. When standard input ends, whoever started it is gone, and it leaves at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import threading

import workers
from tests.helpers import clock_jobs, ending_jobs, misbehaving_jobs, poison_jobs  # noqa: F401 - add their job types
from tests.helpers.far_end import FarEnd
from tests.helpers.fault_jobs import Stage, job_types
from tests.helpers.history import Event
from workers import Runner, failpoints, telemetry
from workers.errors import StorageUnavailableError


def main(arguments: list[str]) -> None:
    """Run until told to stop by a signal, or until the queues are empty."""
    options = _options(arguments)
    if options.network:
        FarEnd.enter(options.network)
    asyncio.run(_main(options))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run test jobs in a process of its own.")
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--types", required=True, help="job types, separated by commas")
    parser.add_argument("--runners", type=int, default=1, help="so many at once, until SIGTERM")
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--poll-interval", type=float, default=1.0)
    parser.add_argument("--lease", type=float, default=15.0)
    parser.add_argument("--grace", type=float, default=30.0)
    parser.add_argument("--loop-stall-limit", type=float, default=60.0)
    parser.add_argument("--poll-only", action="store_true")
    parser.add_argument("--until-empty", action="store_true")
    parser.add_argument("--library", action="store_true", help="note where the library is")
    parser.add_argument("--network", default="", help="the network namespace to be in")
    parser.add_argument("--failpoints", default="", help="as in workers.failpoints")
    return parser.parse_args(arguments)


async def _main(options: argparse.Namespace) -> None:
    stage = Stage(options.name, _write)
    # forked from a process that has imported the library long ago, without any
    vars(failpoints)["hit"] = failpoints.armed(options.failpoints)
    _note_what_the_runner_says(stage)
    if options.library:
        stage.note("log", text=f"library {workers.__file__}")
    if options.runners > 1:
        await _many(options, stage)
        return
    runner = _runner(options, stage)
    if options.until_empty:
        runner.shutdown_when_queue_empty()
    loop = asyncio.get_running_loop()
    threading.Thread(target=_obey, args=(loop, stage), daemon=True).start()
    unfinished = await runner.run()
    stage.note("exit", text=",".join(map(str, unfinished)))
    if unfinished:
        os._exit(3)


def _runner(options: argparse.Namespace, stage: Stage) -> Runner[Stage]:
    runner = Runner(
        options.database_url,
        stage,
        lease=options.lease,
        grace=options.grace,
        loop_stall_limit=options.loop_stall_limit,
        listen=not options.poll_only,
        name=options.name,
    )
    for job_class in job_types(options.types):
        runner.register_job_type(job_class)
        runner.configure_queue(
            job_class.queue, num_workers=options.workers, poll_interval=options.poll_interval
        )
    return runner


async def _many(options: argparse.Namespace, stage: Stage) -> None:
    """Each is started again for as long as the server has no room for it, as whoever looks after a process would."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    threading.Thread(target=_obey, args=(loop, stage), daemon=True).start()

    async def keep_one() -> None:
        while not told.is_set():
            handle = _runner(options, stage).start()
            try:
                await handle.ready()
            except StorageUnavailableError as error:
                stage.note("log", text=f"not started: {error}")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), random.uniform(0.5, 1.5))
                continue
            await told.wait()
            handle.shutdown()
            stage.note("exit", text=",".join(map(str, await handle.wait_for_shutdown())))

    async with asyncio.TaskGroup() as group:
        for _ in range(options.runners):
            group.create_task(keep_one())


def _write(event: Event) -> None:
    """One write a line: whole, or not at all, whenever the process dies."""
    os.write(sys.__stdout__.fileno(), event.line())  # type: ignore[union-attr]  # it has one


def _note_what_the_runner_says(stage: Stage) -> None:
    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith("runner started"):
                stage.note("ready", session=vars(record)["session"])
            stage.note("log", text=f"{record.levelname} {text}")

    logger = logging.getLogger("workers")
    logger.setLevel(logging.INFO)
    logger.addHandler(Notes())
    logger.addHandler(logging.StreamHandler())
    telemetry.subscribe(
        lambda event: stage.note("fenced", job=event.job_id, session=event.session),
        telemetry.JobFenced,
    )
    telemetry.subscribe(
        lambda event: stage.note("superseded", job=event.job_id, session=event.session),
        telemetry.JobSuperseded,
    )
    telemetry.subscribe(
        lambda event: stage.note("session lost", session=event.successor), telemetry.SessionLost
    )
    telemetry.subscribe(
        lambda event: stage.note("rescued", session=event.dead, text=str(event.jobs)),
        telemetry.SessionsRescued,
    )


def _obey(loop: asyncio.AbstractEventLoop, stage: Stage) -> None:
    for line in sys.stdin:
        if line.strip() == "open":
            loop.call_soon_threadsafe(stage.open)
        if line.startswith("arm "):
            vars(failpoints)["hit"] = failpoints.armed(line.removeprefix("arm ").strip())
            stage.note("log", text="armed")
    os._exit(9)
