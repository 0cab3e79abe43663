"""The memory engine's `Control` and `Listener`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from ...errors import StorageUnavailableError
from ...job import JobState
from ..base import SUSPICION, DeadSession, Guard, Maintenance, MaintenanceRequest, Settled, Wake
from .tables import Session, Tables

__all__ = ["MemoryControl", "MemoryListener"]

#: Seconds that jobs of an unknown type wait before they are worth a warning.
_STRAY_FOR = 10.0


class MemoryControl:
    """A session of a MemoryStorage."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._id = 0
        self._linked = False
        self._poked = threading.Event()

    def open(self, name: str, lease: float, queues: Collection[str] = ()) -> int:
        """Register a session."""
        tables = self._tables
        with tables.lock:
            self._id = next(tables.session_ids)
            tables.sessions[self._id] = Session(
                self._id, name, tables.clock() + lease, frozenset(queues)
            )
            self._linked = True
        return self._id

    def recover(self, lease: float) -> bool:
        """Take up the same session; False when it was reaped."""
        with self._tables.lock:
            self._linked = True
            session = self._tables.sessions.get(self._id)
            if session is None or not session.alive:
                return False
            session.locked, session.suspect_since = True, None
            session.lease_until = self._tables.clock() + lease
            return True

    def maintain(self, request: MaintenanceRequest, *, probe: str | None = None) -> Maintenance:
        """Renew, judge, stage and home."""
        tables = self._tables
        with tables.lock:
            self._check_link()
            if probe is not None:
                tables.tell(probe)
            self._judge(request.lease)
            session = tables.sessions.get(self._id)
            alive = session is not None and session.alive
            if session is not None and alive and request.renew:
                session.renew(tables.clock(), request.lease)
            wakes = self._make_available(request.declared)
            ready = [
                row for row in tables.rows.values() if row.run_at is None and row.session is None
            ]
            known = [
                (row, row.queue)
                for row in ready
                if row.queue is not None and row.job_type in request.declared
            ]
            old = tables.clock() - _STRAY_FOR
            worked = set(request.queues).union(
                *(other.queues for other in tables.sessions.values() if other.alive)
            )
            return Maintenance(
                alive=alive,
                probed=probe is not None,
                wakes=wakes,
                suspects={
                    queue
                    for row, queue in known
                    if queue in request.queues and row.crashes and row.state is JobState.AVAILABLE
                },
                stray={
                    (row.job_type, queue)
                    for row, queue in known
                    if row.created_at < old and queue not in worked
                },
                unknown={
                    (row.job_type, row.queue or "")
                    for row in ready
                    if row.job_type not in request.declared
                    and (row.queue in request.queues or row.queue not in worked)
                    and row.created_at < old
                },
                rescue=any(not other.alive for other in tables.sessions.values()),
                silent=any(
                    other.alive and other.suspect_since is not None
                    for other in tables.sessions.values()
                ),
            )

    def _judge(self, lease: float) -> None:
        """Suspect the sessions whose link is down, and find the dead ones."""
        now = self._tables.clock()
        own = self._tables.sessions.get(self._id)
        fit = own is not None and own.lease_until > now + 0.4 * lease
        for other in self._tables.sessions.values():
            if other is own or not other.alive:
                continue
            if fit and other.lease_until < now:
                other.alive, other.dead_reason = False, "its lease ran out"
            elif other.locked:
                other.suspect_since = None
            elif other.suspect_since is None:
                other.suspect_since = now
            elif other.suspect_since <= now - SUSPICION:
                other.alive, other.dead_reason = False, "its connection is gone"

    def _make_available(self, declared: Mapping[str, str]) -> list[Wake]:
        tables = self._tables
        now = tables.clock()
        waiting = [row for row in tables.rows.values() if row.session is None]
        due = [row for row in waiting if row.run_at is not None and row.run_at <= now]
        homeless = [
            row
            for row in waiting
            if row.queue is None and row.run_at is None and row.job_type in declared
        ]
        due.sort(key=lambda row: (row.run_at, row.id))
        homeless.sort(key=lambda row: (-row.priority, row.position))
        for row in (*due, *homeless):
            tables.stage(row, declared.get(row.job_type) if row.queue is None else row.queue)
        return tables.announce((*due, *homeless))

    def rescue(self) -> list[DeadSession]:
        """Give back the jobs of dead sessions, and drop those sessions."""
        tables, rescued = self._tables, []
        with tables.lock:
            self._check_link()
            dead = [session for session in tables.sessions.values() if not session.alive]
            lost = {session.id: list(tables.standing(session, session.claims)) for session in dead}
            tables.give_back([row for rows in lost.values() for row in rows], crashed=True)
            for session in dead:
                del tables.sessions[session.id]
                if rows := lost[session.id]:
                    gone = tuple(row.id for row in rows if row.id not in tables.rows)
                    reason = session.dead_reason
                    rescued.append(DeadSession(session.id, session.name, reason, len(rows), gone))
        return rescued

    def claims(self) -> Mapping[int, Collection[int]]:
        """The ids under each token of this session."""
        with self._tables.lock:
            self._check_link()
            session = self._tables.sessions.get(self._id)
            return {token: list(ids) for token, ids in session.claims.items()} if session else {}

    def release(self, guards: Sequence[Guard]) -> Settled:
        """Give back jobs, uncounted."""
        tables = self._tables
        with tables.lock:
            self._check_link()
            released = tables.give_back(
                [row for guard in guards if (row := tables.owned(self._id, guard))]
            )
            if session := tables.sessions.get(self._id):
                spent = [
                    token for token in session.claims if not any(tables.standing(session, [token]))
                ]
                tables.forget(self._id, spent)
        return released

    def close(self) -> Settled:
        """Give back everything and end the session."""
        tables = self._tables
        with tables.lock:
            session = tables.sessions.get(self._id)
            released = tables.give_back(tables.standing(session, session.claims) if session else ())
            tables.sessions.pop(self._id, None)
            self._linked = False
        return released

    def wait(self, seconds: float) -> None:
        """Wait, until poked, or until the link breaks."""
        self._poked.wait(seconds)
        self._poked.clear()

    def poke(self) -> None:
        """End the wait that is on, or the next one; from any thread."""
        self._poked.set()

    def abandon(self) -> None:
        """Break the link, as a crash would."""
        with self._tables.lock:
            self._linked = False
            self._poked.set()
            if session := self._tables.sessions.get(self._id):
                session.locked = False

    def _check_link(self) -> None:
        if not self._linked:
            raise StorageUnavailableError("the control link is closed")


class MemoryListener:
    """Wake-ups within the process; told by any thread, heard on the loop that opened it."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._messages: asyncio.Queue[Wake | str | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.address = f"probe {id(self)}"

    async def open(self) -> None:
        """Subscribe."""
        self._loop = asyncio.get_running_loop()
        with self._tables.lock:
            self._tables.listening.append(self._told)

    async def listen(self, heard: Callable[[Wake | None], None]) -> None:
        """Tell `heard` of wake-ups as they come; None is a probe that arrived."""
        while (message := await self._messages.get()) is not None:
            if isinstance(message, Wake):
                heard(message)
            elif message == self.address:
                heard(None)

    async def close(self) -> None:
        """Unsubscribe; the stream ends."""
        with self._tables.lock:
            if self._told in self._tables.listening:
                self._tables.listening.remove(self._told)
        self._messages.put_nowait(None)

    def _told(self, message: Wake | str) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._messages.put_nowait, message)
        except RuntimeError:  # its loop is closed: nobody listens any more
            pass
