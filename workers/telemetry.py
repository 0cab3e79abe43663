"""Typed events from the runtime, for metrics, Sentry, tests and dashboards.

    with subscribe(print, JobFinished): ...

A subscriber is called on the thread and at the moment of the event and must be quick; what it raises is logged and goes no
further. With no subscriber for an event type the runtime does not even build the event. The `data` of a job in an event has
*** in the place of its marked fields.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar, overload

import msgspec

from .job import ClaimedJob
from .lifecycle import Outcome, Transition

__all__ = [
    "Event",
    "JobDied",
    "JobFenced",
    "JobFinished",
    "JobStarted",
    "JobSuperseded",
    "ListenerStateChanged",
    "SessionLost",
    "SessionStarted",
    "SessionsRescued",
    "Subscription",
    "emit",
    "enqueue_failed",
    "failed_enqueue_hooks",
    "job_context_hooks",
    "subscribe",
    "wanted",
]

logger = logging.getLogger("workers")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events. `session` is the runner's session id."""

    session: int


class JobStarted(Event, frozen=True, kw_only=True):
    """A worker begins an attempt."""

    job: ClaimedJob


class JobFinished(Event, frozen=True, kw_only=True):
    """An attempt ended. `duration` is in seconds; `transition` is what will be written."""

    job: ClaimedJob
    outcome: Outcome
    transition: Transition
    duration: float


class JobDied(Event, frozen=True, kw_only=True):
    """A job became a dead letter, by its own outcome. Sent in the job's own context."""

    job: ClaimedJob
    outcome: Outcome
    transition: Transition


class JobFenced(Event, frozen=True, kw_only=True):
    """A job ran, and its outcome is not written: it is no longer this session's. Instead of JobFinished, or after it."""

    job_id: int


class JobSuperseded(Event, frozen=True, kw_only=True):
    """A job on its way back to waiting met an identical one and made way for it."""

    job_id: int


class SessionStarted(Event, frozen=True, kw_only=True):
    """A runner is ready: jobs can be claimed."""


class SessionsRescued(Event, frozen=True, kw_only=True):
    """The sweep gave back the `jobs` jobs of the dead session `dead`."""

    dead: int
    name: str
    reason: str
    jobs: int


class SessionLost(Event, frozen=True, kw_only=True):
    """This runner's session was reaped; it went on as `successor`."""

    successor: int


class ListenerStateChanged(Event, frozen=True, kw_only=True):
    """`listening` is False while the runner has polling only."""

    listening: bool


#: Called in each job's own context before its code runs: for what keeps its state in context variables.
job_context_hooks: list[Callable[[ClaimedJob], object]] = []
#: Called when an enqueue fails, before its error is anybody's: for what shows errors, in a process that runs no jobs.
failed_enqueue_hooks: list[Callable[[], object]] = []

E = TypeVar("E", bound=Event)
E2 = TypeVar("E2", bound=Event)
E3 = TypeVar("E3", bound=Event)
_subscribers: dict[type[Event], tuple[Callable[[Any], object], ...]] = {}


class Subscription(AbstractContextManager["Subscription"]):
    """Ends with `close()`, or with the `with` block."""

    def __init__(self, callback: Callable[[Any], object], kinds: tuple[type[Event], ...]) -> None:
        self._callback = callback
        self._kinds = kinds
        for kind in kinds:
            _subscribers[kind] = (*_subscribers.get(kind, ()), callback)

    def close(self) -> None:
        """Stop; harmless when repeated."""
        kinds, self._kinds = self._kinds, ()
        for kind in kinds:
            left = list(_subscribers.get(kind, ()))
            if self._callback in left:
                left.remove(self._callback)
            if left:
                _subscribers[kind] = tuple(left)
            else:
                _subscribers.pop(kind, None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def enqueue_failed() -> None:
    """Call the hooks for that."""
    for hook in failed_enqueue_hooks:
        hook()


# A type checker would take several types for what they have in common, which is Event, and refuse a callback of just those.
@overload
def subscribe(callback: Callable[[E], object], kind: type[E], /) -> Subscription: ...
@overload
def subscribe(
    callback: Callable[[E | E2], object], kind: type[E], second: type[E2], /
) -> Subscription: ...
@overload
def subscribe(
    callback: Callable[[E | E2 | E3], object], kind: type[E], second: type[E2], third: type[E3], /
) -> Subscription: ...
@overload
def subscribe(callback: Callable[[E], object], *kinds: type[E]) -> Subscription: ...
def subscribe(callback: Callable[[Any], object], *kinds: type[Event]) -> Subscription:
    """Call `callback` with each event of the given types (all types when none is given, or Event itself)."""
    chosen = kinds if kinds and Event not in kinds else tuple(Event.__subclasses__())
    return Subscription(callback, chosen)


def wanted(kind: type[Event]) -> bool:
    """Whether anyone listens for `kind`: ask before building an event on a hot path."""
    return kind in _subscribers


def emit(event: Event) -> None:
    """Hand `event` to its subscribers."""
    for callback in _subscribers.get(type(event), ()):
        try:
            callback(event)
        except BaseException:  # a subscriber must not cost the runner more than its own event
            logger.exception(
                "a telemetry subscriber failed", extra={"event_type": type(event).__name__}
            )
