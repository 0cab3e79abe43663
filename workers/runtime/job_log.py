"""What the log says about single jobs: one line each, always with the same fields, whatever their exceptions do.

The logger `workers.jobs` is their own, so that they can be filtered, or counted, apart.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from ..job import ClaimedJob, in_short
from ..lifecycle import Archive, Bury, Completed, Failed, Outcome, Retry, Transition
from ..loggers import JOBS
from .failure import describe

__all__ = [
    "fields",
    "is_talkative",
    "job_logger",
    "log_end",
    "log_no_thread",
    "log_overrun",
    "log_start",
    "spoken",
]

job_logger = logging.getLogger(JOBS)


def spoken(seconds: float) -> str:
    """A duration as people read it: "1 h", "32 min", "45 s", "1.5 s", "20 ms"."""
    if seconds < 0.1:
        milliseconds = seconds * 1000
        if milliseconds >= 1:
            return f"{milliseconds:.3g} ms"
        return "0 s" if seconds <= 0 else f"{max(milliseconds, 0.1):.1f} ms"
    if seconds < 119.5:
        return f"{seconds:.3g} s"
    if seconds < 59.5 * 60:
        return f"{seconds / 60:.2g} min"
    if seconds < 47.5 * 3600:
        return f"{seconds / 3600:.2g} h"
    days = seconds / 86_400
    return f"{days:.2g} days" if days < 99 else f"{days:.0f} days"


def fields(job: ClaimedJob, session: int) -> dict[str, object]:
    """What every record carries."""
    return {
        "job_id": job.id,
        "job_type": job.job_type,
        "queue": job.queue,
        "attempt": job.retries + 1,
        "session": session,
    }


def is_talkative() -> bool:
    """Whether the log wants to know of each job."""
    return job_logger.isEnabledFor(logging.DEBUG)


def log_start(job: ClaimedJob, session: int) -> None:
    """At DEBUG."""
    if job_logger.isEnabledFor(logging.DEBUG):
        _log(logging.DEBUG, job, "started", fields(job, session))


def log_overrun(job: ClaimedJob, session: int, timeout: float) -> None:
    """Its time is over, and nothing can be done about it: a warning, while it goes on."""
    text = f"is past its timeout of {spoken(timeout)}; a thread can't be stopped, so it keeps its worker until it returns"
    _log(logging.WARNING, job, text, fields(job, session))


def log_no_thread(job: ClaimedJob, session: int, why: BaseException) -> None:
    """It goes back uncounted: a warning."""
    _log(logging.WARNING, job, f"could not begin, and is tried again: {why}", fields(job, session))


def log_end(
    job: ClaimedJob, session: int, outcome: Outcome, transition: Transition, duration: float
) -> None:
    """Completions at DEBUG, retries as a warning, deaths and faults of a job's policies as an error. Never raises."""
    if isinstance(transition, Archive | Retry) and transition.fault is not None:
        policy = "backoff" if isinstance(transition, Retry) else "archive policy"
        _log(
            logging.ERROR,
            job,
            f"ended, but its {policy} raised",
            fields(job, session),
            transition.fault,
            describe(transition.fault),
        )
    if isinstance(outcome, Completed) and not job_logger.isEnabledFor(logging.DEBUG):
        return
    ended = type(outcome).__name__.lower()
    extra = fields(job, session) | {"outcome": ended, "duration": round(duration, 6)}
    level, text = logging.INFO, f"{ended} after {spoken(duration)}"
    if isinstance(outcome, Completed):
        level, text = logging.DEBUG, f"completed in {spoken(duration)}"
    elif isinstance(transition, Bury):
        level, text = logging.ERROR, f"is dead: {transition.reason}"
    elif isinstance(transition, Retry):
        said = in_short(transition.error)
        level, text = (
            logging.WARNING,
            f"failed, next attempt in {spoken(transition.delay)}: {said}",
        )
        extra["retry_in"] = transition.delay
    if isinstance(outcome, Failed):
        _log(level, job, text, extra, outcome.exception, outcome.error)
    else:
        _log(level, job, text, extra)


def _log(
    level: int,
    job: ClaimedJob,
    text: str,
    extra: dict[str, object],
    cause: BaseException | None = None,
    traceback: str | None = None,
) -> None:
    """Never raises: neither for an exception that misbehaves when it is shown, nor for a filter that does."""
    for exc_info in (_info(cause), None):
        with contextlib.suppress(BaseException):
            if not job_logger.isEnabledFor(level):
                return
            file, line, function, _ = job_logger.findCaller()
            record = job_logger.makeRecord(
                job_logger.name,
                level,
                file,
                line,
                "job %d (%s) %s",
                (job.id, job.job_type, text),
                exc_info,
                function,
                extra,
            )
            # where formatters look before they make one: theirs of an exception of 100 MB would stop all jobs meanwhile
            record.exc_text = traceback and traceback.rstrip("\n") if exc_info else None
            job_logger.handle(record)
            return


def _info(cause: BaseException | None) -> tuple[Any, Any, Any] | None:
    try:
        return (type(cause), cause, cause.__traceback__) if cause is not None else None
    except BaseException:
        return None
