"""Row 3: workers that stand still past their lease, and go on."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.harness import Bench, CannotRunError, Found, row
from tests.faults.judging import effects_once
from tests.helpers.fault_jobs import (
    EFFECTS,
    Effect,
    EffectInThread,
    Flaky,
    Held,
    HeldInThread,
    Twin,
)
from tests.helpers.history import Event, History, Kind, by
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.proxy import Proxy, proxy_to
from tests.helpers.runners import eventually, left

_LEASE = 1.5
#: The lease, the sweep of a runner that looks three times in a lease, and the rescue and the claims themselves.
_WITHIN = _LEASE * 4 / 3 + 0.25
#: All but `twin`, which is for one who wakes.
_HEIR = "held,held_in_thread,flaky,effect,effect_in_thread"
#: Jobs of a round whose code may end twice: on a worker that was frozen or cut off, and nothing came of it, and on the heir.
#: And as many more as the one that completes, and the one behind the link, have room for.
_TWICE, _MOST_ROOM = 9, 4
_RUNNING = """
SELECT id, session_id, claim_token FROM background_jobs WHERE session_id IS NOT NULL AND id = ANY(%s)
"""
_ALIVE = "SELECT count(*) FROM worker_sessions WHERE alive"
_CRASHES = "SELECT crashes FROM background_jobs WHERE id = %s"


@row(
    "3",
    "frozen worker",
    "frozen past its lease (SIGSTOP while jobs are in threads; before a claim, a hand-over, a completion, a retry or a "
    "commit; behind a frozen link) and woken: stale writes accepted 0, transactional effects exactly once, reclaimed "
    "within the lease and one sweep",
)
def frozen_workers(bench: Bench) -> Found:
    if not Path("/proc/self/stat").exists():
        raise CannotRunError("there is no /proc, which tells that a process stands still")
    # seven of eight by SIGSTOP
    rounds = bench.pick(full=29, quick=3, tiny=1)
    found = Found(injected=0, jobs=0)
    twice = 0
    ids: list[int | None] = []
    effects: list[int | None] = []
    with bench.stage() as (_, conn, history, workers), proxy_to(workers.database_url) as proxy:
        conn.execute(EFFECTS)
        sweeper = workers.start("noise", lease=_LEASE)
        sweeper.ready()
        for _ in range(rounds):
            current = _Round(bench, found, conn, history, workers, proxy)
            current.begin()
            current.freeze()
            current.inherit(_WITHIN * bench.margin)
            current.wake()
            current.end()
            found.injected += len(current.victims)
            twice += _TWICE + 2 * current.room
            ids += current.jobs
            effects += current.effects
        sweeper.send(signal.SIGTERM)
        found.expect(sweeper.wait() == 0, "the sweeper did not end well")
        found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
        found.judge(history.check(ids), duplicates=twice, by_kills=True)
        found.jobs = len(ids)
        effects_once(found, conn, effects)
    return found


class _Round:
    """Workers that are frozen together, each at another place, and the one that inherits their jobs."""

    def __init__(
        self,
        bench: Bench,
        found: Found,
        conn: psycopg.Connection[Any],
        history: History,
        workers: Crew,
        proxy: Proxy,
    ) -> None:
        self._chance = bench.chance
        self._found = found
        self._conn = conn
        self._history = history
        self._workers = workers
        self._proxy = proxy
        #: Of those that are at work when they are frozen, on the event loop.
        self.room = self._chance.randrange(1, _MOST_ROOM + 1)
        self.victims: list[WorkerProcess] = []
        self.jobs: list[int | None] = []
        self.effects: list[int | None] = []
        #: Who had them, of the jobs that the heir takes over.
        self._had: dict[int | None, WorkerProcess] = {}
        self._frozen: dict[str, float] = {}

    def begin(self) -> None:
        """Give each worker that is to be at work when it is frozen its jobs, as many as it has room for."""
        self.in_threads = [self._victim("held_in_thread,effect_in_thread", 4) for _ in range(2)]
        self.completing = self._victim("held", self.room, "complete=stop")
        self.cut_off = self._victim("held", self.room, database_url=self._proxy.url)
        self.settling = self._victim("flaky", self.room, "settle=stop")
        for victim in self.victims:
            victim.ready()
        ids = [
            *HeldInThread.enqueue_batch(self._conn, [HeldInThread(key=key) for key in range(6)]),
            *Held.enqueue_batch(self._conn, [Held(key=key) for key in range(2 * self.room)]),
            *Flaky.enqueue_batch(
                self._conn, [Flaky(key=key, held=True) for key in range(self.room)]
            ),
        ]
        self.jobs += ids
        names = {victim.name: victim for victim in self.victims}
        for event in self._all("start", ids):
            self._had[event.job] = names[event.process]

    def freeze(self) -> None:
        """Freeze all of them; those that stop by themselves first."""
        self._freeze_at_a_claim()
        # its transaction holds the row: this one is not for the heir
        committed = Effect(key=2).enqueue(self._conn)
        self.committing = self._victim("effect", 1, "transaction written=stop")
        self._stands(self.committing)
        self._a_while()
        for victim in self._chance.sample((self.completing, self.settling), 2):
            victim.open()
        self._stands(self.completing, self.settling)
        held = Held.enqueue_batch(self._conn, [Held(key=key) for key in range(2)])
        effects = Effect.enqueue_batch(self._conn, [Effect(key=key) for key in range(2)])
        # it has them, and has not begun
        self.claimed = self._victim("held,effect", 4, "claimed=stop")
        self._stands(self.claimed)
        self._had |= dict.fromkeys([*held, *effects], self.claimed)

        pausing = [EffectInThread(key=key, seconds=0.3) for key in range(2)]
        in_transactions = EffectInThread.enqueue_batch(self._conn, pausing)
        self._all("start", in_transactions)
        for victim in self._chance.sample(self.in_threads, 2):
            victim.send(signal.SIGSTOP)
        self._stands(*self.in_threads)
        self._proxy.freeze()
        self._note_frozen(self.cut_off)
        self.cut_off.open()
        self._history.wait_for("end", count=self.room, where=by(self.cut_off.name))
        self.effects += [*effects, committed, *in_transactions]
        self.jobs += [*held, *self.effects]

    def _freeze_at_a_claim(self) -> None:
        """Its claim will be for a session that is dead and still there, as an open transaction holds one of its jobs."""
        clinging = Effect(key=3, seconds=1.0).enqueue(self._conn)
        self.claiming = self._victim("effect,twin", 2, poll_interval=0.1)
        self._all("start", [clinging])
        self.claiming.arm("claim=stop")
        self._stands(self.claiming)
        # only now: a claim may have been on its way when the failpoint was armed
        self.later = Twin(key=1).enqueue(self._conn)
        self.effects.append(clinging)
        self.jobs.append(self.later)

    def inherit(self, within: float) -> None:
        """Another one starts with what they had."""
        self.heir = self._workers.start(_HEIR, workers=30, lease=_LEASE)
        reclaimed = {event.job: event.at for event in self._all("start", [*self._had], self.heir)}
        for job, victim in self._had.items():
            self._found.recovered(reclaimed[job or 0] - self._frozen[victim.name], within=within)

    def wake(self) -> None:
        """Let all of them go on, to the end; nothing that they write may change what the heir holds."""
        held = [job for job in self._had if job not in self.effects]
        everything = [*self._had]
        eventually(lambda: len(self._running(everything)) == len(held))  # the short ones are done
        eventually(
            lambda: self._conn.execute(_ALIVE).fetchone() == (2,)
        )  # the heir and the sweeper
        before = self._running(held)
        self._a_while()
        for victim in self._chance.sample(self.victims, len(self.victims)):
            if victim is not self.cut_off:
                victim.send(signal.SIGCONT)
        self._proxy.thaw()
        for victim in self.victims:
            (lost,) = self._history.wait_for("session lost", where=by(victim.name))
            if victim is self.claiming:
                self._claimed_anew(lost.session)
            victim.open()
        for victim in self.in_threads:
            self._all("end", [job for job, who in self._had.items() if who is victim], victim)
        for victim in self.victims:
            victim.send(signal.SIGTERM)
        for victim in self.victims:
            status = victim.wait()
            self._found.expect(status == 0, f"{victim.name} ended with {status}")
        self._found.stale_accepted += len(before - self._running(held))
        self._refused()

    def _claimed_anew(self, session: int) -> None:
        """The claim for its dead session took nothing, else somebody would have rescued it."""
        (started,) = self._all("start", [self.later])
        crashes = self._conn.execute(_CRASHES, [self.later]).fetchone()
        self._found.stale_accepted += started.session != session or crashes != (0,)

    def _refused(self) -> None:
        """Those that were about to write did try it; what was claimed and not begun was not started late."""
        for victim in (self.completing, self.settling, self.cut_off):
            refused = len(self._history.events("fenced", where=by(victim.name)))
            self._found.expect(
                refused == self.room,
                f"{victim.name}: {refused} of {self.room} writes were refused",
            )
        late = self._history.events("start", where=by(self.claimed.name))
        self._found.expect(not late, f"started under a stale claim: {late}")

    def end(self) -> None:
        """The heir finishes everything."""
        self.heir.open()
        eventually(lambda: left(self._conn)["background_jobs"] == 0)
        self.heir.send(signal.SIGTERM)
        self._found.expect(self.heir.wait() == 0, "the heir did not end well")

    def _running(self, ids: list[int | None]) -> set[tuple[Any, ...]]:
        """The rows of those that are claimed."""
        return set(self._conn.execute(_RUNNING, [ids]).fetchall())

    def _victim(
        self, types: str, room: int, failpoints: str = "", **options: object
    ) -> WorkerProcess:
        victim = self._workers.start(
            types, workers=room, lease=_LEASE, failpoints=failpoints, **options
        )
        self.victims.append(victim)
        return victim

    def _all(
        self, what: Kind, ids: list[int | None], process: WorkerProcess | None = None
    ) -> list[Event]:
        """One such event for each of these jobs, by that process if one is given."""
        wanted = set(ids)
        return self._history.wait_for(
            what,
            count=len(wanted),
            where=lambda event: (
                event.job in wanted and (process is None or event.process == process.name)
            ),
        )

    def _a_while(self) -> None:
        """At most a third of a lease: whatever those that are not frozen are doing just then."""
        self._conn.execute("SELECT pg_sleep(%s)", [self._chance.uniform(0.0, _LEASE / 3)])

    def _stands(self, *victims: WorkerProcess) -> None:
        """Wait until they stand still."""
        for victim in victims:
            stat = Path(f"/proc/{victim.pid}/stat")
            eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")  # noqa: B023
            self._note_frozen(victim)

    def _note_frozen(self, victim: WorkerProcess) -> None:
        now = self._frozen[victim.name] = time.monotonic()
        self._history.add(Event(what="frozen", process=victim.name, at=now))
