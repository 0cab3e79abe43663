"""The session: opened, kept alive, judged by others, ended; and the same for others. Used from one thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from ... import failpoints
from ...errors import StorageError
from ...log_aside import aside as logger
from ..base import SUSPICION, DeadSession, Guard, Maintenance, MaintenanceRequest, Settled, Wake
from .apart import LAST_PASS_SECONDS, PASS_SECONDS, Apart
from .checkout import translated
from .control_link import USER_TIMEOUT, ControlLink
from .hushing import HUSHED, HUSHED_SECONDS, notifying
from .literals import number_array
from .settling import settled
from .staging import Staging
from .statements import statement
from .strays import Strays
from .watch import LinkWatch

__all__ = ["PostgresControl"]

_POOLED = (
    "the database is reached through a pooler, such as PgBouncer: new jobs are found by polling only, and those of a runner "
    "that was killed start again when its lease (%g s) is over; connect to the server itself for more"
)

#: A server that says nothing for so long, or for half of the lease where that is more, counts as lost: there must be time
#: left to take the lock again on another link. Long work that it is at, such as a large rescue, it brings to an end.
_LEAST_PATIENCE = 5.0

#: After an outage the owners of other sessions get this long, or a lease, to come back before anyone judges them.
_RECONNECT_SECONDS = 5.0

_MAINTAIN = statement("maintain")
_RESCUE, _RESCUE_DEDUPLICATED, _LOST = map(
    statement, ("rescue", "rescue_deduplicated", "lost_deduplicated")
)
_BURY_CLAIMS, _LOCK_DEAD, _REMOVE = map(
    statement, ("bury_claims", "lock_dead_sessions", "remove_sessions")
)
_OPEN, _RETAKE, _CLAIMS = map(statement, ("open_session", "retake_session", "session_claims"))
_LOCK_SESSION, _END, _END_CLAIMS = map(statement, ("lock_session", "end_session", "end_claims"))
_HELD_IDS, _WAIT, _WAIT_DEDUPLICATED = map(statement, ("held_ids", "wait", "wait_deduplicated"))
_LOCKED = statement("locked_session")


class PostgresControl:
    """See `storage.base.Control`."""

    def __init__(
        self,
        link: ControlLink,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._fetch = link.fetch
        self._clock = clock
        self._watch = LinkWatch()
        self._session, self._started = 0, "0"
        self._locked = False
        # when this connection may judge others by their locks, and by their leases
        self._judge_locks_at = self._judge_leases_at = 0.0
        self._strays, self._staging = Strays(clock), Staging(clock)
        self._rescues, self._releases = Apart(link), Apart(link)
        self._hushed_until = 0.0

    def open(self, name: str, lease: float, queues: Collection[str] = ()) -> int:
        """Connect and register: first the lock, then the row."""
        with translated(), self._link.kept_if_good():
            self._reconnect(lease)
            self._judge_locks_at = 0.0
            ((self._session,),) = self._fetch("SELECT nextval('worker_sessions_id_seq')::bigint")
            self._locked = self._link.lock(self._session)
            failpoints.hit("session locked")
            ((self._started,),) = self._fetch(
                _OPEN,
                session=self._session,
                name=name,
                lease=lease,
                queues=list(queues),
                lease_only=self._lease_only,
            )
            failpoints.hit("session opened")
        if self._link.pooled:
            logger.warning(_POOLED, lease)
        return self._session

    def recover(self, lease: float) -> bool:
        """Reconnect and take the same lock; True while the session's row is alive."""
        with translated(), self._link.kept_if_good():
            failpoints.hit("recover")
            self._reconnect(lease)
            self._locked = self._link.lock(self._session)
            failpoints.hit("lock retaken")
            alive = self._fetch(
                _RETAKE,
                session=self._session,
                started=self._started,
                lease=lease,
                lease_only=self._lease_only,
            )
            failpoints.hit("recovered")
            return bool(alive)

    @notifying
    def maintain(self, request: MaintenanceRequest, *, probe: str | None = None) -> Maintenance:
        """One statement; see queries/maintain.sql."""
        now = self._clock()
        with translated():
            if self._link.hushed and now >= self._hushed_until:
                self._link.hush(False)
            if not self._locked and self._link.lock(self._session):
                failpoints.hit("lock taken late")
                self._fetch(_LOCKED, session=self._session)
                self._locked = True
            rows = self._fetch(
                _MAINTAIN,
                session=self._session,
                started=self._started,
                lease=request.lease,
                suspicion=SUSPICION,
                user_timeout=USER_TIMEOUT,
                renew=request.renew,
                judge_locks=now >= self._judge_locks_at,
                judge_leases=now >= self._judge_leases_at,
                job_types=list(request.declared),
                declared_queues=list(request.declared.values()),
                queues=list(request.queues),
                probe=None if self._link.hushed else probe,
                stage=self._staging.is_due(now),
            )
        self._staging.looked(now, rows)
        astray: Sequence[tuple[str, str, bool]] = ()
        # what was found out above is known in any case
        with contextlib.suppress(StorageError), translated():
            astray = self._strays.look(self._fetch, request)
        kinds = {row[0] for row in rows}
        return Maintenance(
            alive="alive" in kinds,
            rescue="rescue" in kinds,
            silent="silent" in kinds and now >= self._judge_locks_at,
            probed="probed" in kinds,
            more="more" in kinds,
            wakes=[
                Wake(queue, priority, position)
                for what, queue, priority, position in rows
                if what == "wake"
            ],
            suspects={queue for what, queue, _, _ in rows if what == "suspects"},
            stray=[(job_type, queue) for job_type, queue, known in astray if known],
            unknown=[(job_type, queue) for job_type, queue, known in astray if not known],
        )

    @notifying
    def rescue(self) -> list[DeadSession]:
        """Give back the jobs of dead sessions and remove what is finished of them."""
        with translated():
            failpoints.hit("rescue")
            rows = self._fetch(_RESCUE)
            failpoints.hit("rescued")
            rows += self._rescues.give_back(
                lambda only: self._fetch(
                    _RESCUE_DEDUPLICATED, only=None if only is None else number_array(only)
                ),
                lambda: [job_id for (job_id,) in self._fetch(_LOST)],
            )
            failpoints.hit("rescued all")
            self._fetch(_BURY_CLAIMS)
            failpoints.hit("claims buried")
            with self._link.transaction():
                sessions = [row[0] for row in self._fetch(_LOCK_DEAD)]
                self._fetch(_REMOVE, sessions=sessions)
                failpoints.hit("removal written")
            failpoints.hit("sessions removed")
        rescued: dict[int, DeadSession] = {}
        for session, name, reason, jobs, superseded in rows:
            before = rescued.get(session, DeadSession(session, name, reason or "", 0))
            gone = (*before.superseded, *superseded)
            rescued[session] = msgspec.structs.replace(
                before, jobs=before.jobs + jobs, superseded=gone
            )
        return list(rescued.values())

    def claims(self) -> Mapping[int, Collection[int]]:
        """The ids under each token of this session."""
        with translated():
            return dict(self._fetch(_CLAIMS, session=self._session))

    @notifying
    def release(self, guards: Sequence[Guard]) -> Settled:
        """Give back jobs, uncounted."""
        with translated():
            failpoints.hit("give back")
            rows = self._fetch(
                _HELD_IDS, session=self._session, tokens=list({guard.token for guard in guards})
            )
            wanted = {(guard.id, guard.token) for guard in guards}
            released = self._give_back([row for row in rows if (row[0], row[1]) in wanted])
            failpoints.hit("given back all")
            self._fetch(_END_CLAIMS, session=self._session)
            failpoints.hit("claims ended")
            return released

    @notifying
    def close(self) -> Settled:
        """Give back everything, remove the session, disconnect.

        What an open transaction keeps from going back stays, with the session, for the sweep of another one.
        """
        with translated():
            if not self._link.is_open:
                self._reconnect()
            self._link.be_patient(_LEAST_PATIENCE)  # whoever ends is waited for
            with self._link.transaction():
                # after a claim on its way has landed, and before another one can
                self._fetch(_LOCK_SESSION, session=self._session)
                tokens = list(self.claims())
                held = self._fetch(_HELD_IDS, session=self._session, tokens=tokens)
                released = self._give_back(held, LAST_PASS_SECONDS)
                self._fetch(_END_CLAIMS, session=self._session)
                self._fetch(_END, session=self._session)
                failpoints.hit("release written")
        self.abandon()
        return released

    def wait(self, seconds: float) -> None:
        """Wait, until poked, or until the link breaks; not at all where it has broken meanwhile."""
        if self._link.conn is None or self._link.is_open:
            self._watch.wait(self._link.conn, seconds)

    def poke(self) -> None:
        """End the wait that is on, or the next one; from any thread."""
        self._watch.poke()

    def abandon(self) -> None:
        """Disconnect without a word."""
        self._link.abandon()

    @property
    def _lease_only(self) -> bool:
        """A lock that is with somebody else says nothing of this session, nor does the moment it is let go."""
        return self._link.pooled or not self._locked

    def hush(self) -> None:
        """Do without notifications, for a while."""
        logger.warning(HUSHED, HUSHED_SECONDS)
        self._hushed_until = self._clock() + HUSHED_SECONDS
        with translated():
            self._link.hush(True)

    def _give_back(self, rows: Sequence[tuple[Any, ...]], seconds: float = PASS_SECONDS) -> Settled:
        """Release (id, token, deduplicated) rows."""
        ordinary = [row for row in rows if not row[2]]
        deduplicated = {row[0]: row for row in rows if row[2]}
        released = self._write(_WAIT, ordinary) if ordinary else []
        failpoints.hit("given back")
        if deduplicated:
            released += self._releases.give_back(
                lambda only: self._write(
                    _WAIT_DEDUPLICATED,
                    [deduplicated[job_id] for job_id in (only or deduplicated)],
                ),
                lambda: deduplicated,
                seconds,
            )
        return settled(released)

    def _write(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return self._fetch(
            sql,
            session=self._session,
            ids=number_array([row[0] for row in rows]),
            tokens=number_array([row[1] for row in rows]),
            delays=[None] * len(rows),
            errors=[None] * len(rows),
            counted=[False] * len(rows),
            cleared=[False] * len(rows),
        )

    def _reconnect(self, lease: float = _RECONNECT_SECONDS) -> None:
        self._locked = False
        self._link.open(max(_LEAST_PATIENCE, lease / 2))
        patience = min(lease, _RECONNECT_SECONDS)  # within a lease whoever lives has renewed it
        self._judge_locks_at = self._judge_leases_at = self._clock() + patience
