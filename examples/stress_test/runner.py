"""One runner as a process of its own.

fleet.py starts it with its orders as the argument and the database in DATABASE_URL, but it runs by itself just as well:

    DATABASE_URL=... python -m examples.stress_test.runner '{"name": "mine", "workers": 10, ...}'

SIGTERM lets running jobs finish. What happens is told on standard output, in the words of messages.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time

import msgspec

from workers.lifecycle import Bury, Retry
from workers.telemetry import JobFinished, JobStarted, SessionsRescued, subscribe

from .game import World, make_runner
from .messages import Finished, Message, News, Orders, Rescued, Started


def main() -> None:
    """Run until SIGTERM, or until whoever started this process is gone."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger().handlers[0].addFilter(_is_not_told)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    orders = msgspec.json.decode(sys.argv[1], type=Orders)
    world = World(orders.speed, orders.seed, orders.failures, lambda text: _tell(News(text)))
    runner = make_runner(
        os.environ["DATABASE_URL"], world, workers=orders.workers, name=orders.name
    )
    with (
        subscribe(_started, JobStarted),
        subscribe(_finished, JobFinished),
        subscribe(
            lambda event: _tell(Rescued(event.name, event.jobs, event.reason)), SessionsRescued
        ),
    ):
        asyncio.run(runner.run())


def _started(event: JobStarted) -> None:
    job = event.job
    _tell(Started(job.id, time.monotonic(), job.retries, job.crashes))


def _finished(event: JobFinished) -> None:
    trouble = ""
    match event.transition:
        case Retry(delay=delay, error=error):
            last_line = error.strip().rpartition("\n")[2]
            trouble = f"{last_line.rpartition(': ')[2]}; again in {delay:g} s"
        case Bury(reason=reason):
            trouble = f"dead letter: {reason}"
    if trouble:
        trouble = f"{event.job.job_type} {event.job.id}, attempt {event.job.retries + 1}: {trouble}"
    _tell(Finished(event.job.id, trouble))


def _tell(message: Message) -> None:
    # at once and in one piece: this process may be killed at any time
    os.write(sys.stdout.fileno(), msgspec.json.encode(message) + b"\n")


def _is_not_told(record: logging.LogRecord) -> bool:
    """Whether a log record says something that no message does."""
    return not hasattr(record, "job_id") and not hasattr(record, "dead_session")


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
