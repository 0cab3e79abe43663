"""`workers run`: a process that runs jobs."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, NoReturn

import click

from .. import sentry
from ..log_aside import aside
from ..runner import Runner
from ..telemetry import SessionStarted, subscribe
from . import logs
from .app import load, make_runner, takes_database_url
from .command import Command, show_tracebacks, tell
from .database import VARIABLE, database_option, resolve
from .processes import SAME_REQUEST, Processes, is_watched, watched_by_parent
from .tally import Tally
from .watchdog import watchdog

__all__ = ["JOBS_LEFT", "LOOP_ENDED", "LOOP_STALLED", "run"]

#: Exit codes beyond 0, 1 and click's 2.
JOBS_LEFT = 3
LOOP_STALLED = 4
LOOP_ENDED = 5

#: Seconds that threads and tasks which jobs have left behind get to end, when everything else has.
_PATIENCE = 3.0
#: Seconds for what is still to be written to logs and Sentry, when the process leaves threads behind.
_LAST_WORDS = 3.0

_COMMANDLINE = click.core.ParameterSource.COMMANDLINE

_EPILOG = """
\b
Exit codes:
  0  shut down in order: jobs have finished, or went back to their queue
  1  it could not start, or it died; or a job held the GIL for longer than the
     loop_stall_limit: standard error has the stack (on Linux)
  2  wrong usage
  3  some jobs would not stop (a thread can't be stopped) and were left behind;
     other runners give them back, as after a crash
  4  a job blocked the event loop for longer than the Runner's loop_stall_limit;
     the log has its name and stack
  5  a job ended the event loop: it counts as crashed, and so do its neighbours, which
     are cleared as soon as they have run

Threads and tasks that jobs have left behind get 3 s at the end.

With --processes the highest code of the processes that were running at the end; 1 where one of them was killed. Each has a
session of its own, and a grace of its own; signals are passed on, so signal the parent alone (a SIGTERM that comes twice
within a second, as from systemd without KillMode=mixed, counts once). One that ends is replaced, and its jobs are rescued,
whatever its code is and whoever ended it, unless its queues were empty: to end all, signal the parent. One that can't be
started is tried again; when none ever got ready, the parent gives up.

Log lines go to standard error: what became of the jobs of the last second, queue by queue, retries and deaths one by
one, and with --log-level debug each job. In the code of a job they carry job_id, job_type, queue, attempt and session. An
application that configures logging itself keeps what it has, unless --log-level or --log-format says otherwise.
"""


@click.command(cls=Command, epilog=_EPILOG)
@click.option("--app", "spec", metavar="MODULE:ATTR", required=True, help="What to run, see above.")
@database_option("Given to a function that has a parameter database_url.")
@click.option(
    "--processes",
    type=click.IntRange(1, 1024),
    help="Run so many processes, and replace those that die. Default: this one, unwatched.",
)
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
    processes: int | None,
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
      workers run --app shop.jobs:runner --processes 4

    \b
      @asynccontextmanager
      async def make_runner(database_url):
          async with Mailer() as mailer:
              yield Runner(database_url, mailer).register_job_type(SendEmail)
    """
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # of a container's first process: the kernel keeps from it what it does not handle, and a SIGTERM while the
        # application is imported would be lost
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    if log_level == "debug":
        show_tracebacks(context, True)
    if processes is not None:
        logs.configure(log_level, log_format)
        _leave(asyncio.run(Processes(processes, _repeated(context)).run()))
    if log_level or log_format:
        logs.configure(log_level, log_format)
    loop_factory = _uvloop() if uvloop else None
    target = load(spec)
    arguments = _arguments(context, target, spec, database_url)
    service = _Service(target, arguments, spec)
    with asyncio.Runner(loop_factory=loop_factory) as loop:
        try:
            loop.run(service.run(lambda: logs.configure(log_level, log_format)))
        except BaseException as error:
            if (
                service.is_running
            ):  # nobody has told it to end: `sys.exit` in a callback, or `loop.stop`
                aside.critical("a job ended the event loop, so the process ends: %r", error)
                _leave(LOOP_ENDED)
            if service.has_begun:
                _finish(1)
            tell(context, error)  # now: the loop may never end
        _finish(0)


class _Service:
    """The application's runner. `is_running` while it runs, and if its coroutine was left in the middle; `has_begun` once
    there may be jobs."""

    def __init__(self, target: Any, arguments: Mapping[str, str], spec: str) -> None:
        self._target = target
        self._arguments = arguments
        self._spec = spec
        self.is_running = self.has_begun = False

    async def run(self, configure_logs: Callable[[], None]) -> None:
        async with AsyncExitStack() as stack:
            runner = await make_runner(self._target, self._arguments, stack, self._spec)
            configure_logs()  # now that the application has had its chance
            unfinished = await self._run(runner)
            if unfinished:
                # leaving the loop in the ordinary way would wait for their threads
                _leave(JOBS_LEFT)

    async def _run(self, runner: Runner[Any]) -> list[int]:
        self.is_running = True
        if is_watched():
            runner._same_request = SAME_REQUEST
        try:
            with (
                Tally(),
                subscribe(self._begin, SessionStarted),
                watched_by_parent() as has_ended,
                watchdog(runner.loop_stall_limit),
            ):
                unfinished = await runner.run(on_stall=lambda seconds, frames: _leave(LOOP_STALLED))
                if not unfinished:
                    has_ended(runner._told_to_end)
        except Exception:
            self.is_running = False
            raise
        self.is_running = False
        return unfinished

    def _begin(self, event: SessionStarted) -> None:
        self.has_begun = True


def _finish(code: int) -> None:
    """The process is about to end by itself; if it does not, it is ended with `code`.

    What a job has left behind, a thread or a task that can't be ended, is not waited for.
    """
    with suppress(RuntimeError):  # there are no more threads to be had
        threading.Thread(target=_leave_later, args=[code], daemon=True).start()


def _leave_later(code: int) -> None:
    time.sleep(_PATIENCE)  # an ordinary end does not take so long, and takes this thread with it
    threads = [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    what = f"threads: {', '.join(threads)}" if threads else "a task that does not end"
    aside.warning("the process ends without what jobs have left behind: %s", what)
    _leave(code)


def _repeated(context: click.Context) -> list[str]:
    """What this command was called with, but for --processes."""
    words = ["run"]
    for option in context.command.params:
        name = option.name or ""
        if name == "processes" or context.get_parameter_source(name) is not _COMMANDLINE:
            continue
        value = context.params.get(name, True)
        if isinstance(option, click.Option) and option.is_flag:
            words.append((option.opts if value else option.secondary_opts)[0])
        else:
            words += [option.opts[0], str(value)]
    return words


def _arguments(
    context: click.Context, target: Any, spec: str, database_url: str | None
) -> dict[str, str]:
    if takes_database_url(target, spec):
        if not database_url:
            raise click.UsageError(
                f"{spec} wants a database: give --database-url or set {VARIABLE}."
            )
        return {"database_url": resolve(database_url)}
    if context.get_parameter_source("database_url") is _COMMANDLINE:
        raise click.UsageError(
            f"--database-url is for a function with a parameter database_url; {spec} brings its own."
        )
    return {}


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        raise click.ClickException(
            "uvloop is not installed: pip install uvloop (the extra `uvloop` of workers-pg)"
        ) from None
    return uvloop.new_event_loop


def _leave(code: int) -> NoReturn:
    """End the process, whatever its threads do. Nothing here may wait for long: locks may be held by what hangs."""
    try:
        thread = threading.Thread(target=_last_words, daemon=True)
        thread.start()
        thread.join(_LAST_WORDS)
    finally:  # also where there are no more threads to be had
        os._exit(code)


def _last_words() -> None:
    sentry.flush(_LAST_WORDS - 1)
    atexit._run_exitfuncs()  # an embedded server is stopped there
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
