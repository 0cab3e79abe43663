"""The runner's session, kept alive by a thread of its own.

A thread, because a job that blocks the event loop must not cost the runner its lease: the thread renews it, sweeps for dead
sessions, stages due jobs, and watches the loop itself. It talks to the loop by callbacks only, and never waits for
a log handler: the loop may be stuck in it.

When its link breaks, claiming stops, and the thread takes the same lock under the same session again. While the session's
row is alive every claim is kept: a restart of the server takes no running job away. Only when the session was reaped in the
meantime does the runner begin a new one, and the jobs of the old one are stopped without writing anything.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Protocol

from .. import failpoints
from ..errors import StorageError, StorageUnavailableError
from ..log_aside import aside as logger
from ..storage.base import (
    SUSPICION,
    Control,
    DeadSession,
    Maintenance,
    MaintenanceRequest,
    Settled,
)
from .driving import uncancellable
from .ledger import Ledger
from .loop_watch import LoopWatch

__all__ = ["PROBE_EVERY", "SessionEvents", "SessionKeeper", "StallHandler"]

#: Called on the session thread with the seconds and the stack of a loop that stands still.
StallHandler = Callable[[float, str], None]

TICK, _RETRY = 1.0, 0.25
_TELL_FIRST, _TELL_EVERY = 5.0, 60.0
#: How much of the lease is left, at least, when it has been maintained.
LEFT = 0.66
#: A deaf listener is looked for this often.
PROBE_EVERY = 15.0
#: Seconds, at the end, for what is still to be written to the log.
_LAST_WORDS = 1.0
_NOTHING = Settled(())


class SessionEvents(Protocol):
    """What the thread tells the runner; called on the event loop, in the order in which it happened."""

    def session_opened(self, session: int) -> None:
        """The first one: claims may begin."""

    def link_lost(self, error: StorageError) -> None:
        """Nothing may be claimed for now."""

    def link_restored(self) -> None:
        """The session is as it was."""

    def session_replaced(self, session: int) -> None:
        """The old session was reaped."""

    def renewed(self, until: float) -> None:
        """What this session holds is surely its own until then, by the monotonic clock."""

    def maintained(self, result: Maintenance) -> None:
        """A second's housekeeping is done."""

    def rescued(self, dead: list[DeadSession]) -> None:
        """Jobs of dead sessions were given back."""

    def made_way(self, job_ids: Collection[int]) -> None:
        """Jobs of this session were given back, and met identical ones that wait."""

    def probed(self, at: float) -> None:
        """A probe was sent to the listener, after `at` by the monotonic clock."""

    def thread_died(self, error: BaseException) -> None:
        """The session is no longer kept: its lease will run out."""

    def jobs_in_threads(self) -> bool:
        """Whether job code runs in threads. Called on the session thread."""

    def stalled(
        self, seconds: float, stack: str, *, limit: float, everything: bool = False
    ) -> None:
        """The loop stands still: once for a warning, once when `limit` seconds are over. Called on the thread.

        `everything`: the whole process stood still, and goes on by now.
        """


class SessionKeeper:
    """Owns the control link and its thread."""

    def __init__(
        self,
        control: Control,
        ledger: Ledger,
        events: SessionEvents,
        request: MaintenanceRequest,
        *,
        name: str,
        stall_limit: float,
    ) -> None:
        self._control = control
        self._ledger = ledger
        self._events = events
        self._request = request
        self._name = name
        # the lease is renewed when a third of it is gone
        self._tick_every = min(TICK, request.lease / 3)
        self._loop = asyncio.get_running_loop()
        self._loop_watch = LoopWatch(self._post, events.stalled, stall_limit)
        self._stopping = self._loop_closed = self._replacing = False
        self._give_back = True
        self._waiting: list[Future[Maintenance]] = []
        self._next_probe = self._next_reconcile = time.monotonic() + request.lease
        self._reconciled = 0
        #: What the listener is reached by; set by the loop.
        self.listener_address: str | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"workers-session-{name}", daemon=True
        )
        self.started: Future[int] = uncancellable()
        self.ended: Future[Settled] = uncancellable()

    def start(self) -> None:
        """Start the thread; `started` gets the session's id, or the error."""
        self._thread.start()

    @property
    def begun(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    def stop(self, *, give_back: bool = True) -> None:
        """End the session; `ended` gets the jobs that went back. Returns at once."""
        self._give_back = give_back
        self._stopping = True
        self._control.poke()

    def maintain_now(self) -> Future[Maintenance]:
        """Ask for a round of housekeeping that begins after this call."""
        future: Future[Maintenance] = uncancellable()
        self._waiting.append(future)
        self._control.poke()
        return future

    # ------------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        now = time.monotonic()
        try:
            session = self._control.open(self._name, self._request.lease, self._request.queues)
        except BaseException as error:
            self._control.abandon()
            self.started.set_exception(error)
            self.ended.set_result(_NOTHING)
            return
        # first: whoever stands still before the first renewal must find, too, that the lease may be over
        self._post(self._events.renewed, now + self._request.lease)
        self._post(self._events.session_opened, session)
        self.started.set_result(session)
        released = _NOTHING
        try:
            while not self._is_over():
                pause = self._tick()
                wake_at = time.monotonic() + pause
                # a wait in there may have used up the poke
                self._control.wait(0.0 if self._stopping else pause)
                self._loop_watch.overslept(time.monotonic() - wake_at)
            released = self._end()
        except BaseException as error:
            logger.critical("the session thread died", exc_info=True)
            self._control.abandon()
            self._post(self._events.thread_died, error)
        finally:
            for future in self._waiting:
                future.set_exception(StorageUnavailableError("the session has ended"))
            logger.flush(_LAST_WORDS)
            self.ended.set_result(released)

    def _is_over(self) -> bool:
        """Told to stop; or the loop is closed, and no job is left that runs in a thread and needs its claim."""
        return self._stopping or (self._loop_closed and not self._events.jobs_in_threads())

    def _tick(self) -> float:
        """A round of housekeeping; the seconds until the next one."""
        waiting, self._waiting = self._waiting, []
        self._look_after_loop()
        now = time.monotonic()
        try:
            probe = self.listener_address if now >= self._next_probe else None
            failpoints.hit("maintain")
            result = self._control.maintain(self._request, probe=probe)
            failpoints.hit("maintained")
            if result.probed:
                self._next_probe = now + PROBE_EVERY
                self._post(self._events.probed, now)
            if result.alive:
                self._post(self._events.renewed, now + LEFT * self._request.lease)
            else:
                self._replace_session()
            # whoever waits for the end is not to wait for the jobs of others
            if result.rescue and not self._stopping and (dead := self._control.rescue()):
                self._post(self._events.rescued, dead)
            self._post(self._events.maintained, result)
            if not self._stopping:
                self._now_and_then()
        except StorageError as error:
            self._post(self._events.link_lost, error)
            for future in waiting:
                future.set_exception(error)
            self._recover()
            return self._tick_every
        for future in waiting:
            future.set_result(result)
        pause = min(SUSPICION / 3, self._tick_every) if result.silent else self._tick_every
        return 0.0 if result.more else pause

    def _now_and_then(self) -> None:
        # a claim that was given up may land long after its connection is gone (of one that never lost any nothing is new)
        now, news, lost_at = time.monotonic(), self._ledger.news, self._ledger.lost_at
        if now < lost_at + self._request.lease or (
            now >= self._next_reconcile and (news != self._reconciled or lost_at > -math.inf)
        ):
            self._next_reconcile = now + self._request.lease
            # the order matters: what is claimed after this line is not in `claims`
            claims = self._control.claims()
            orphans = self._ledger.orphans(claims)
            if orphans and (released := self._control.release(orphans)).count:
                logger.warning(
                    "gave back %d jobs that this runner held without knowing", released.count
                )
                self._post(self._events.made_way, released.superseded)
            if not orphans:  # one that had to stay behind a lock is tried again
                self._reconciled = news

    def _recover(self) -> None:
        """Get the link back, however long it takes. Why it can't be had may change meanwhile, and is told now and then."""
        tell_at = time.monotonic() + _TELL_FIRST
        while not self._is_over():
            self._look_after_loop()
            now = time.monotonic()
            try:
                # a replacement that broke off may have left a row, but nobody was told of it
                if not self._replacing and self._control.recover(self._request.lease):
                    self._post(self._events.renewed, now + self._request.lease)
                    self._post(self._events.link_restored)
                else:
                    self._replace_session()
                return
            except StorageError as error:
                if now >= tell_at:
                    tell_at = now + _TELL_EVERY
                    logger.warning("the session's connection is still not back: %s", error)
                self._control.wait(_RETRY)

    def _replace_session(self) -> None:
        self._replacing, now = True, time.monotonic()
        self._control.abandon()
        session = self._control.open(self._name, self._request.lease, self._request.queues)
        self._replacing = False
        self._post(self._events.session_replaced, session)
        self._post(self._events.renewed, now + self._request.lease)

    def _end(self) -> Settled:
        if not self._give_back:
            self._control.abandon()
            return _NOTHING
        for _ in range(3):
            try:
                failpoints.hit("release")
                released = self._control.close()
                failpoints.hit("released")
                return released
            except StorageError as error:
                logger.warning("the session can't be closed now: %s", error)
                self._control.wait(_RETRY)
        logger.error("the session was left behind; another runner gives its jobs back")
        self._control.abandon()
        return _NOTHING

    def _look_after_loop(self) -> None:
        if not self._loop_closed:
            self._loop_watch.look()

    def _post(self, callback: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # nobody is left to be told
            self._loop_closed = True
