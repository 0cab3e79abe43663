"""What the session thread and the listener report, and what the runner does about it. On the event loop."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Collection, Mapping

from .. import telemetry
from ..errors import StorageError, StorageRejectedError
from ..job import printable
from ..log_aside import aside
from ..storage.base import DeadSession, Maintenance, Storage, Wake
from .attempt import ASK_AGAIN, Attempt, Fenced
from .claimer import Claimer
from .completer import Completer
from .executor import ThreadJobs
from .gate import Gate
from .ledger import Ledger
from .session import StallHandler
from .work_queue import WorkQueue

__all__ = ["Reports"]

logger = logging.getLogger("workers")

#: Names in warnings may be a producer's: more than this says nothing new.
_MOST_WARNINGS = 1000


class Reports:
    """See `session.SessionEvents`."""

    def __init__(
        self,
        storage: Storage,
        ledger: Ledger,
        completer: Completer,
        gate: Gate,
        queues: Mapping[str, WorkQueue],
        claimers: Mapping[str, Claimer],
        threads: ThreadJobs,
        die: Callable[[BaseException], None],
        on_stall: StallHandler | None,
    ) -> None:
        self._storage = storage
        self._ledger = ledger
        self._completer = completer
        self._gate = gate
        self._queues = queues
        self._claimers = claimers
        self._threads = threads
        self._die = die
        self._on_stall = on_stall
        self._warned: set[str] = set()
        self.probed_listener: Callable[[float], None] = lambda _: None

    def wake(self, wake: Wake) -> None:
        """Something is available: in one queue, or in any."""
        self._storage.noticed(wake)
        for name, claimer in self._claimers.items():
            if not wake.queue or wake.queue == name:
                if wake.suspects:
                    claimer.suspects = True
                claimer.wake()

    def session_opened(self, session: int) -> None:
        """The first one: claims may begin."""
        self._ledger.begin_session(session)
        self._gate.open()

    def link_lost(self, error: StorageError) -> None:
        """Nothing may be claimed for now."""
        self._gate.close()
        text = "the session's connection is lost, nothing is claimed until it is back: %s"
        if isinstance(error, StorageRejectedError):  # the connection is as good as any
            text = "the session's housekeeping is refused, nothing is claimed until it succeeds: %s"
        logger.warning(text, error)

    def link_restored(self) -> None:
        """The session is as it was, and so are its claims."""
        self._resume()
        logger.info("the session's connection is back; session %d goes on", self._ledger.session)

    def session_replaced(self, session: int) -> None:
        """The old session was reaped: what it had claimed belongs to others now, and is stopped without a word."""
        old = self._ledger.session
        self._ledger.begin_session(session)
        for queue in self._queues.values():
            for attempt in list(queue.running):
                _disown(queue, attempt)
            for job in queue.take_back():
                self._completer.dropped(job)
        self._resume()
        text = "session %d was taken for dead and its jobs were given back; going on as %d"
        logger.error(text, old, session)
        telemetry.emit(telemetry.SessionLost(session=old, successor=session))

    def renewed(self, until: float) -> None:
        """The lease is good until then."""
        for queue in self._queues.values():
            queue.renewed(until)

    def maintained(self, result: Maintenance) -> None:
        """A second's housekeeping is done."""
        for wake in result.wakes:
            self.wake(wake)
        for queue in result.suspects:
            claimer = self._claimers.get(queue)
            if claimer is not None and not claimer.suspects:
                claimer.found_suspects()
        for job_type, queue in result.stray:
            self._warn(
                f"jobs of type {printable(job_type)} wait in queue {queue!r}, which no runner works; "
                f"configure_queue({queue!r}) would work it"
            )
        for job_type, queue in result.unknown:
            where = f"in queue {queue!r}" if queue else "without a queue"
            if queue and queue not in self._queues:
                where += ", which no runner works,"
            self._warn(
                f"jobs of type {printable(job_type)} have been waiting {where} for 10 s or longer, and this runner does not "
                "know the type; unless another one does, register_job_type is missing"
            )

    def _warn(self, text: str) -> None:
        """Once in the life of this runner."""
        if text not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(text)
            logger.warning("%s", text)

    def rescued(self, dead: list[DeadSession]) -> None:
        """Jobs of dead sessions were given back."""
        for session in dead:
            logger.warning(
                "session %d (%s) is dead, %s: gave back its %d jobs",
                session.session,
                printable(session.name),
                session.reason,
                session.jobs,
                extra={
                    "session": self._ledger.session,
                    "dead_session": session.session,
                    "jobs": session.jobs,
                },
            )
            telemetry.emit(
                telemetry.SessionsRescued(
                    session=self._ledger.session,
                    dead=session.session,
                    name=session.name,
                    reason=session.reason,
                    jobs=session.jobs,
                )
            )
            self._completer.made_way(self._ledger.session, session.superseded)
        # those jobs are suspects now; the next housekeeping would say so, a second later
        for claimer in self._claimers.values():
            claimer.suspects = True
        self.wake(Wake())

    def made_way(self, job_ids: Collection[int]) -> None:
        """Jobs of this session were given back, and met identical ones."""
        self._completer.made_way(self._ledger.session, job_ids)

    def probed(self, at: float) -> None:
        """A probe was sent to the listener."""
        self.probed_listener(at)

    def thread_died(self, error: BaseException) -> None:
        """The session is no longer kept, so the runner can't go on."""
        self._die(error)

    def jobs_in_threads(self) -> bool:
        """Whether job code runs in threads. On the session thread."""
        return bool(self._threads)

    def stalled(
        self, seconds: float, stack: str, *, limit: float, everything: bool = False
    ) -> None:
        """The loop stands still. On the session thread: nothing here may need the loop."""
        over = seconds >= limit
        running = [
            f"{attempt.job.id} ({attempt.job.job_type})"
            for queue in self._queues.values()
            for attempt in list(queue.running)
        ]
        what = "the event loop has not run for %.0f s; a job blocks it"
        if everything:
            what = "no thread of this process has run for %.0f s; it was stopped or starved, or a job held the GIL"
        aside.log(
            logging.CRITICAL if over else logging.WARNING,
            what + " (loop_stall_limit is %g s). Running: %s\n%s",
            seconds,
            limit,
            ", ".join(running) or "nothing",
            stack,
        )
        if everything:  # it is over, and a process that was only stopped has done no wrong
            return
        if over and self._on_stall is not None and not _is_debugged(stack):
            try:
                self._on_stall(seconds, stack)
            except Exception:  # it must not cost the runner its lease
                aside.exception("the handler of a stalled event loop failed")

    def _resume(self) -> None:
        self._gate.open()
        for claimer in self._claimers.values():
            claimer.wake()


def _disown(queue: WorkQueue, attempt: Attempt) -> None:
    """Stop a job that is somebody else's by now, and ask again while it goes on: it may have swallowed that."""
    if attempt in queue.running:
        attempt.stop(Fenced())
        asyncio.get_running_loop().call_later(ASK_AGAIN, _disown, queue, attempt)


def _is_debugged(stack: str) -> bool:
    """Whether somebody is looking into it: the loop stands still in a debugger's own file, not in a job's `webdb.py`."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in ("bdb", "pydevd")]
    return any(file is not None and f'File "{file}"' in stack for file in files)
