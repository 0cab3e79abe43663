"""Tell Sentry about jobs, in applications that use it. There is nothing to switch on.

Once the application has called `sentry_sdk.init`, before or after importing `workers`:

* Each attempt has an isolation scope of its own, a fork of the one the runner was started in. Tags and breadcrumbs of
  one job are seen neither by the next nor by the application around the runner. Whatever is captured in a job carries
  the tags job_type, job_id, queue and attempt.
* A job that becomes a dead letter is captured, once. A failure that will be retried is not, nor are cancelled, snoozed
  and interrupted jobs; a job that wants a failed attempt seen captures it itself.
* A death without an exception (a payload that can't be decoded, a process that died too often, `Discard`) is captured
  as a message.
* Payloads stay here, also in a process that only enqueues: a job's fields and the local variables of the library's own
  frames, and of the drivers' frames beside them, are taken out of every event. What an exception says, and the other
  local variables of your code, is yours: `include_local_variables=False` drops the latter.
* Where a job has fields that are marked as `Secret`, their values are taken out of all that is captured in it, and all
  local variables are.

`sentry_sdk` is never imported by this module. Until it is initialised a job costs one look.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import telemetry
from .background_job import BackgroundJob
from .hiding import Hiding, hiding
from .job import ClaimedJob
from .lifecycle import Bury, Crashed, Discarded, Outcome, Transition
from .loggers import JOBS

if TYPE_CHECKING:
    from sentry_sdk._types import Event, Hint

__all__ = ["flush", "install"]

logger = logging.getLogger("workers")

#: Their local variables hold payloads or connection strings when the library called them.
_DRIVERS = ("psycopg", "psycopg_pool", "psycopg2", "asyncpg", "sqlalchemy", "django")
_OWN = __name__.partition(".")[0]

#: What an event has to be an event: a secret that is called the same is no secret there.
_FORMAL = frozenset({"event_id", "level", "modules", "platform", "sdk", "timestamp", "type"})

_preparing = threading.Lock()
_prepared = False


def install() -> None:
    """Watch jobs from now on. `import workers` does it."""
    if _begin not in telemetry.job_context_hooks:
        telemetry.job_context_hooks.append(_begin)
        telemetry.failed_enqueue_hooks.append(_active)
        telemetry.subscribe(_report_death, telemetry.JobDied)
        logger.addFilter(_before_record)


def flush(timeout: float = 2.0) -> None:
    """Send what is waiting to be sent; for a process that will not end in the ordinary way."""
    if (sdk := _active()) is not None:
        sdk.flush(timeout=timeout)


def _active() -> Any:
    """The SDK if the application has initialised it, else None. Never raises."""
    sdk = sys.modules.get("sentry_sdk")
    try:
        if sdk is None or not sdk.is_initialized():
            return None
    except AttributeError:  # another thread is importing it
        return None
    return sdk if _prepared or _prepare() else None


def _prepare() -> bool:
    """Say what is said to the SDK once in a process; False if it is not one that we know."""
    global _prepared
    try:
        from sentry_sdk.integrations.logging import ignore_logger
        from sentry_sdk.scope import add_global_event_processor
        from sentry_sdk.serializer import add_global_repr_processor

        with _preparing:
            if not _prepared:
                # deaths among these reach Sentry by way of telemetry, with all that belongs to them
                ignore_logger(JOBS)
                add_global_event_processor(_without_local_variables)
                add_global_repr_processor(_without_payload)
                _prepared = True
    except Exception:  # another version's, or what stands in the way of its import
        return False
    return True


# ------------------------------------------------------------------------------------------------------------------ jobs


def _begin(job: ClaimedJob) -> None:
    """Give the job's context scopes of its own. Never raises: that would be taken for a failure of the job."""
    sdk = _active()
    if sdk is None:
        return
    try:
        scope = sdk.get_isolation_scope().fork()
        scope.clear_breadcrumbs()
        current = sdk.get_current_scope().fork()
        # a job is no part of the request or task that started the runner
        scope.span = current.span = None
        scope.set_new_propagation_context()
        _describe(scope, job)
        if hiding.get(None) is not None:
            _hide_in_logs(sdk.get_client().options)
        sdk.Scope.set_isolation_scope(scope)
        sdk.Scope.set_current_scope(current)
    except Exception:
        logger.debug("Sentry: no scope for job %d", job.id, exc_info=True)


def _describe(scope: Any, job: ClaimedJob) -> None:
    scope.set_transaction_name(job.job_type, source="task")
    scope.set_tags(
        {
            "job_type": job.job_type,
            "job_id": str(job.id),
            "queue": job.queue,
            "attempt": str(job.retries + 1),
        }
    )


def _report_death(event: telemetry.JobDied) -> None:
    sdk, job = _active(), event.job
    if sdk is None:
        return
    # a fork again: a job that died before its code began has no scope of its own
    with sdk.isolation_scope() as scope:
        _describe(scope, job)
        exception = getattr(event.outcome, "exception", None)
        if exception is None:
            kind, text = _in_words(job, event.outcome, event.transition)
            scope.fingerprint = ["workers", job.job_type, kind]
            sdk.capture_message(text, level="error")
            return
        scope.fingerprint = ["{{ default }}", job.job_type]
        try:
            _capture(sdk, exception)
        except BaseException:  # an exception whose __str__, __cause__ or class misbehaves
            sdk.capture_message(
                f"{job.job_type} is dead: {type(exception).__name__}", level="error"
            )


def _capture(sdk: Any, exception: BaseException) -> None:
    from sentry_sdk.utils import event_from_exception

    event, hint = event_from_exception(
        (type(exception), exception, _of_the_job(exception.__traceback__)),
        client_options=sdk.get_client().options,
        mechanism={"type": "workers", "handled": False},
    )
    sdk.capture_event(event, hint=hint)


def _of_the_job(trace: TracebackType | None) -> TracebackType | None:
    """`trace` from where the runtime called the job; the whole if the job's code is not in it."""
    inner = at = trace
    while at is not None:
        if at.tb_frame.f_globals.get("__name__", "").startswith("workers.runtime."):
            inner = at.tb_next
        at = at.tb_next
    return inner or trace


def _in_words(job: ClaimedJob, outcome: Outcome, transition: Transition) -> tuple[str, str]:
    """The kind of a death without an exception, for grouping, and a text that shows nothing of the payload."""
    reason = transition.reason if isinstance(transition, Bury) else ""
    match outcome:
        case Crashed():
            return "crashed", f"{job.job_type} is dead: {reason}"
        case Discarded(error=None):  # the reason may quote the payload
            return "undecodable", f"{job.job_type} is dead: its payload can't be decoded"
        case Discarded():
            return "discarded", f"{job.job_type} is dead: {reason}"
        case _:
            return "failed", f"{job.job_type} is dead: {reason}"


# ------------------------------------------------------------------------------------------------------- what is kept back


def _before_record(record: logging.LogRecord) -> bool:
    """The SDK may make an event of this record, perhaps before any job has run."""
    if record.levelno >= logging.ERROR:
        _active()
    return True


def _without_payload(value: object, hint: dict[str, Any]) -> Any:
    return value.__sentry_repr__() if isinstance(value, BackgroundJob) else NotImplemented


def _without_local_variables(event: Event, hint: Hint) -> Event:
    """Drop the variables of the library's frames, and of the drivers' in an event with any of these; in a job with secrets
    all. (SQLAlchemy's and Django's errors have the driver's for a cause, whose stack begins below ours.)"""
    hide = hiding.get(None)
    frames = [frame for stack in _stacks(event) for frame in stack]
    kept_back = _DRIVERS if any(_package(frame) == _OWN for frame in frames) else ()
    for frame in frames:
        if hide is not None or _package(frame) in (_OWN, *kept_back):
            frame.pop("vars", None)
    if hide is not None:
        said: dict[str, Any] = event  # type: ignore[assignment]
        said |= {name: _without(said[name], hide) for name in said.keys() - _FORMAL}
    return event


class _Hidden:
    """What is done with each of Sentry's logs, which pass no event processor: `then`, with the job's secrets taken out."""

    def __init__(self, then: Callable[[Any, Hint], Any] | None) -> None:
        self._then = then

    def __call__(self, log: Any, hint: Hint) -> Any:
        if (hide := hiding.get(None)) is not None:
            log = log | {name: _without(log.get(name), hide) for name in ("body", "attributes")}
        return log if self._then is None else self._then(log, hint)


def _hide_in_logs(options: dict[str, Any]) -> None:
    then = options.get("before_send_log")
    if not isinstance(then, _Hidden):
        then = then or options.get("_experiments", {}).get("before_send_log")
        options["before_send_log"] = _Hidden(then)


def _without(value: Any, hide: Hiding) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {
            name: _without(part, hide) if name != "trace" else part for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without(part, hide) for part in value]
    return value


def _stacks(event: Any) -> Iterator[list[dict[str, Any]]]:
    """The frames of each stack in `event`, outermost first."""
    holders = [event]
    for key in ("exception", "threads"):
        holders += (event.get(key) or {}).get("values") or []
    for holder in holders:
        yield ((holder or {}).get("stacktrace") or {}).get("frames") or []


def _package(frame: dict[str, Any]) -> str:
    return str(frame.get("module") or "").partition(".")[0]
