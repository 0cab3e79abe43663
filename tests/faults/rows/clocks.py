"""Row 16: processes whose clock is wrong, and connections that live in other time zones."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from datetime import UTC, datetime, timedelta, timezone
from glob import glob
from statistics import median
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import psycopg

from tests.faults.harness import Bench, CannotRunError, Found, Scale, row
from tests.helpers.clock_jobs import Clocked, Snoozing, Spawning, Unready
from tests.helpers.fault_jobs import Brief
from tests.helpers.history import Event, History, by
from tests.helpers.nursery import Nursery, nursery
from tests.helpers.processes import Crew, WorkerProcess, crew
from tests.helpers.runners import eventually, left
from tests.helpers.server import connection_url

_TYPES = "clocked,spawning,unready,snoozing"
_LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1")
_HOUR = 3600.0
#: So short that there are two looks a second at what is due: what a single job waits for the next one would hide the rest.
_LEASE = 1.5
#: Seconds to the next look, and to begin: of nearly all, so that, as none is early, no two of those differ by more. A few
#: may be later on a machine that is busy, where looks are slow, and so are not made each time (see staging.py).
_MOSTLY, _LATE, _SHARE = 1.0, 1.5, 0.95
#: What two looks at two clocks may differ by.
_EARLY = 0.05
_SPREAD = 0.5
#: When clocks are put forward and back: 2:30 that there is not, and 1:30 twice.
_CHANGES = (
    datetime(2031, 3, 9, 2, 30),
    datetime(2031, 11, 2, 1, 30),
    datetime(2031, 11, 2, 1, 30, fold=1),
)
#: From the time at which a delay is counted to the end of a transaction; a wrong clock would make it an hour.
_MOMENT = 1.0
_PATIENCE = 60.0
#: What the jobs themselves ask for, in seconds.
_AGAIN = 1.0


class _Place(NamedTuple):
    """Where worker processes run: whose clock is `wrong` by so many seconds, whose connections live in `zone`."""

    zone: str
    wrong: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.zone} {self.wrong / _HOUR:+g} h"


_PLACES = (
    _Place("Asia/Tokyo", _HOUR),
    _Place("America/Los_Angeles", -_HOUR),
    _Place("UTC"),
    _Place("Asia/Tokyo"),
    _Place("America/Los_Angeles"),
    _Place("UTC", _HOUR),
)


@row(
    "16",
    "clocks and session time zones",
    "workers whose clock is an hour ahead or behind (faketime), in sessions of Tokyo, Los Angeles and UTC: jobs with "
    "delay, run_at, backoff and snooze begin when they should by the server's clock, never early, <= 1.5 s late, 19 of 20 "
    "< 1 s (looked for twice a second here), medians < 0.5 s apart; a run_at in the hour of a clock change (DST), both "
    "ways, is stored as the moment that it names; nobody is taken for dead; lost 0, twice 0. Slots of schedules on such "
    "days: row 16b, when there are schedules",
)
def clocks(bench: Bench) -> Found:
    places = _PLACES[: bench.pick(full=6, quick=6, tiny=3)]
    found = Found(injected=len(places), jobs=0)
    library = _faketime()
    with contextlib.ExitStack() as stack:
        homes = {
            place: stack.enter_context(_home(place, library)) if place.wrong else None
            for place in places
        }
        _alone(bench, found, homes)
        if bench.scale is not Scale.TINY:  # it takes some leases
            _together(bench, found, homes)
    return found


def _faketime() -> str:
    found = [path for pattern in _LIBRARIES for path in glob(pattern)]
    if not found:
        raise CannotRunError("libfaketime is missing: apt-get install libfaketime")
    return found[0]


def _home(place: _Place, library: str) -> contextlib.AbstractContextManager[Nursery]:
    """Where processes with a wrong clock come from; the monotonic one can't be wrong."""
    return nursery(
        LD_PRELOAD=library,
        FAKETIME=f"{place.wrong:+.0f}",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        PGTZ=place.zone,
    )


def _in_zone(url: str, place: _Place) -> str:
    """For processes whose environment says nothing of it."""
    return connection_url(url, options=f"-cTimeZone={place.zone}")


class _Site:
    """One place with a database of its own."""

    def __init__(
        self, place: _Place, conn: psycopg.Connection[Any], history: History, workers: Crew
    ) -> None:
        self.place = place
        self.conn = conn
        self.history = history
        self.workers = workers
        self.ids: list[int | None] = []
        #: When jobs are due by the server's clock; those that enqueue others, and how long those are to wait.
        self.due: dict[int, float] = {}
        self.delays: dict[int, float] = {}

    def enqueue(self, bench: Bench, number: int, longest: float) -> None:
        """Jobs that are due within `longest` seconds."""
        query = (
            "SELECT id, extract(epoch FROM run_at)::float8 FROM background_jobs WHERE id = ANY(%s)"
        )
        for key in range(number):
            delay = bench.chance.uniform(0.3, longest)
            zone = timezone(timedelta(hours=bench.chance.randrange(-12, 13)))
            at = datetime.now(UTC).astimezone(zone) + timedelta(seconds=delay)
            kind: Any = Unready if key % 2 else Snoozing
            with self.conn.transaction():  # when they become due, that is not in the row any more
                waiting = [
                    Clocked(key=key).enqueue(self.conn, delay=delay),
                    Clocked(key=key).enqueue(self.conn, run_at=at),
                ]
                self.due |= dict(self.conn.execute(query, [waiting]).fetchall())
            parent = Spawning(delay=delay).enqueue(self.conn)
            self.delays[parent or 0] = delay
            self.ids += [parent, kind(key=key).enqueue(self.conn), *waiting]

    def clock_changes(self, found: Found, url: str) -> None:
        """Where a time of day does not say which moment it is, the zone and the fold of the given one do."""
        stored = "SELECT extract(epoch FROM run_at)::float8 FROM background_jobs WHERE id = %s"
        with psycopg.connect(url) as conn:
            for change in _CHANGES:
                at = change.replace(tzinfo=ZoneInfo("America/Los_Angeles"))
                row = conn.execute(stored, [Clocked().enqueue(conn, run_at=at)]).fetchone()
                found.expect(
                    row == (at.timestamp(),), f"{self.place.name}: {at} is stored as {row}"
                )
            conn.rollback()

    def judge(self, found: Found, margin: float) -> float:
        """How late its jobs began: the median, in seconds."""
        ahead = _ahead(self.conn)
        lateness: list[float] = []
        events = self.history.events("start", "broken")
        for event in events:
            if event.job in self.delays:
                self._spawned(found, event)
        for event in sorted(events, key=lambda event: event.at):
            if event.what == "broken":
                self.due[event.job] = event.at + ahead + _AGAIN
            elif event.job in self.due:
                lateness.append(event.at + ahead - self.due[event.job])
                self._told(found, event, ahead)
        found.expect(
            min(lateness) > -_EARLY, f"{self.place.name}: {-min(lateness):.2f} s too early"
        )
        found.recovered(max(lateness), within=_LATE * margin)
        most = sorted(lateness)[math.ceil(_SHARE * len(lateness)) - 1]
        found.expect(
            most < _MOSTLY * margin,
            f"{self.place.name}: one in {1 / (1 - _SHARE):.0f} was more than {most:.2f} s late",
        )
        found.judge(self.history.check([*self.ids, *self.due]))
        found.jobs += len({*self.ids, *self.due})
        return median(lateness)

    def _spawned(self, found: Found, event: Event) -> None:
        """Another job, enqueued where the clock is wrong."""
        child, due, wait, zone = event.text.split()
        self.due[int(child)] = float(due)
        off = abs(float(wait) - self.delays[event.job])
        found.expect(off < _MOMENT, f"{self.place.name}: a delay is off by {off:.2f} s")
        found.expect(zone == self.place.zone, f"{self.place.name}: in the time zone {zone}")

    def _told(self, found: Found, event: Event, ahead: float) -> None:
        """The clock of that process is as wrong as it should be."""
        if event.text:
            wrong = float(event.text) - (event.at + ahead)
            found.expect(abs(wrong - self.place.wrong) < 60, f"{self.place.name}: off by {wrong} s")


def _alone(bench: Bench, found: Found, homes: dict[_Place, Nursery | None]) -> None:
    """A worker of each place on a database of its own: nobody else's clock can help it."""
    number, longest = bench.pick(full=(100, 20.0), quick=(20, 4.0), tiny=(4, 1.0))
    with contextlib.ExitStack() as stack:
        sites = []
        for place, home in homes.items():
            url = stack.enter_context(bench.database())
            conn = stack.enter_context(psycopg.connect(url, autocommit=True))
            history = stack.enter_context(bench.history())
            workers = stack.enter_context(
                crew(home, url, history) if home else bench.workers(_in_zone(url, place), history)
            )
            workers.start(_TYPES, lease=_LEASE)
            sites.append(_Site(place, conn, history, workers))
        for site in sites:
            site.workers.members[0].ready()
        for site in sites:
            site.clock_changes(found, _in_zone(site.workers.database_url, site.place))
            site.enqueue(bench, number, longest)
        for site in sites:
            eventually(lambda: left(site.conn)["background_jobs"] == 0, _PATIENCE)  # noqa: B023
            _ended(found, site.workers.members)
        medians = [site.judge(found, bench.margin) for site in sites]
        spread = max(medians) - min(medians)
        found.expect(spread < _SPREAD * bench.margin, f"the places differ by {spread:.2f} s")


def _together(bench: Bench, found: Found, homes: dict[_Place, Nursery | None]) -> None:
    """All on one database, with short leases: none may take another one for dead."""
    lease = bench.pick(full=3.0, quick=2.0, tiny=2.0)
    number = bench.pick(full=2_000, quick=400, tiny=400)
    with contextlib.ExitStack() as stack:
        url, conn, history, common = stack.enter_context(bench.stage())
        members = []
        for place, home in homes.items():
            workers, place_url = common, _in_zone(url, place)
            if home:
                workers = stack.enter_context(crew(home, url, history, place.name))
                place_url = url
            options = {"database_url": place_url, "lease": lease, "workers": 2}
            members.append(workers.start("brief", **options))
        for member in members:
            member.ready()
        # enough for three leases
        seconds = 3 * lease * len(members) * 2 / number
        jobs = [Brief(key=key, seconds=seconds) for key in range(number)]
        ids = Brief.enqueue_batch(conn, jobs)
        eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
        _ended(found, members)
        found.judge(history.check(ids))
        found.jobs += len(ids)
        for event in history.events("fenced", "session lost", "rescued"):
            found.expect(False, f"{event.process}: {event.what}, session {event.session}")
        found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
        idle = [one.name for one in members if not history.events("end", where=by(one.name))]
        found.expect(not idle, f"some did nothing: {idle}")


def _ended(found: Found, members: list[WorkerProcess]) -> None:
    for member in members:
        member.send(signal.SIGTERM)
        found.expect(member.wait() == 0, f"{member.name} did not end well")


def _ahead(conn: psycopg.Connection[Any]) -> float:
    """How far the server's clock is ahead of the one that events go by: as the quickest of some answers says."""
    best = (float("inf"), 0.0)
    for _ in range(10):
        before = time.monotonic()
        row = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        assert row is not None
        took = time.monotonic() - before
        best = min(best, (took, row[0] - before - took / 2))
    return best[1]
