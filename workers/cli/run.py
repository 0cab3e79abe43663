"""`workers run`: a process that runs jobs."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import click

from .. import sentry
from . import logs
from .app import load, make_runner, takes_database_url
from .command import Command, show_tracebacks
from .database import VARIABLE, database_option, resolve
from .tally import Tally

__all__ = ["JOBS_LEFT", "LOOP_STALLED", "run"]

#: Exit codes beyond 0, 1 and click's 2.
JOBS_LEFT = 3
LOOP_STALLED = 4

#: Seconds for what is still to be written to logs and Sentry, when the process leaves threads behind.
_LAST_WORDS = 3.0

_EPILOG = """
\b
Exit codes:
  0  shut down in order: jobs have finished, or went back to their queue
  1  it could not start, or it died
  2  wrong usage
  3  some jobs would not stop (a thread can't be stopped) and were left behind;
     other runners give them back, as after a crash
  4  a job blocked the event loop for longer than the Runner's loop_stall_limit;
     the log has its name and stack

Log lines go to standard error: what became of the jobs of the last second, queue by queue, retries and deaths one by
one, and with --log-level debug each job. In the code of a job they carry job_id, job_type, queue, attempt and session. An
application that configures logging itself keeps what it has, unless --log-level or --log-format says otherwise.
"""


@click.command(cls=Command, epilog=_EPILOG)
@click.option("--app", "spec", metavar="MODULE:ATTR", required=True, help="What to run, see above.")
@database_option("Given to a function that has a parameter database_url.")
@click.option("--uvloop/--no-uvloop", default=False, help="Use uvloop. Default: no.")
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS, case_sensitive=False),
    help="Default: info, or what the application has set up.",
)
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS, case_sensitive=False),
    help="Default: text, or what the application has set up.",
)
@click.pass_context
def run(
    context: click.Context,
    spec: str,
    database_url: str | None,
    uvloop: bool,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run jobs until SIGTERM or SIGINT (Ctrl-C).

    The first signal stops claiming and lets running jobs finish, for as long as the Runner's `grace` says. A second one,
    or the end of the grace, stops them: they go back to their queue, and no attempt is counted.

    MODULE is imported with the current directory on sys.path. ATTR is a workers.Runner, or a function, sync or async,
    that returns one, or a context manager that yields one and cleans up at the end. The function is called inside the
    event loop; with a parameter named database_url it gets the database from here, else it brings its own.

    \b
    Examples:
      workers run --app shop.jobs:runner
      workers run --app shop.jobs:make_runner --database-url embedded:./data
      workers run --app shop.jobs:runner --log-format json --uvloop

    \b
      @asynccontextmanager
      async def make_runner(database_url):
          async with Mailer() as mailer:
              yield Runner(database_url, mailer).register_job_type(SendEmail)
    """
    if log_level == "debug":
        show_tracebacks(context, True)
    if log_level or log_format:
        logs.configure(log_level, log_format)
    loop_factory = _uvloop() if uvloop else None
    target = load(spec)
    arguments = _arguments(context, target, spec, database_url)
    with asyncio.Runner(loop_factory=loop_factory) as loop:
        loop.run(_serve(target, arguments, spec, lambda: logs.configure(log_level, log_format)))


async def _serve(
    target: Any, arguments: Mapping[str, str], spec: str, configure_logs: Callable[[], None]
) -> None:
    async with AsyncExitStack() as stack:
        runner = await make_runner(target, arguments, stack, spec)
        configure_logs()  # now that the application has had its chance
        with Tally():
            unfinished = await runner.run(on_stall=lambda seconds, frames: _leave(LOOP_STALLED))
        if unfinished:
            # leaving the loop in the ordinary way would wait for their threads
            _leave(JOBS_LEFT)


def _arguments(
    context: click.Context, target: Any, spec: str, database_url: str | None
) -> dict[str, str]:
    if takes_database_url(target, spec):
        if not database_url:
            raise click.UsageError(
                f"{spec} wants a database: give --database-url or set {VARIABLE}."
            )
        return {"database_url": resolve(database_url)}
    source = context.get_parameter_source("database_url")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError(
            f"--database-url is for a function with a parameter database_url; {spec} brings its own."
        )
    return {}


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        raise click.ClickException(
            "uvloop is not installed: pip install 'workers-pg[uvloop]'"
        ) from None
    return uvloop.new_event_loop


def _leave(code: int) -> NoReturn:
    """End the process, whatever its threads do. Nothing here may wait for long: locks may be held by what hangs."""
    thread = threading.Thread(target=_last_words, daemon=True)
    thread.start()
    thread.join(_LAST_WORDS)
    os._exit(code)


def _last_words() -> None:
    sentry.flush(_LAST_WORDS - 1)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
