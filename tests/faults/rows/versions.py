"""Row 22: two versions of an application, from two installs of the library, in turns on one database, migrated meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg

from tests.faults.deployment import ONLY_NEW, WORKERS, Rollout, Version, enqueueing
from tests.faults.harness import Bench, Found, row
from tests.faults.judging import effects_once, swept_away
from tests.helpers.fault_jobs import EFFECTS, Effect
from tests.helpers.history import Event, History
from tests.helpers.installs import Install, install_next, install_this
from tests.helpers.nursery import Nursery, nursery
from tests.helpers.processes import crew
from tests.helpers.runners import eventually, left
from workers import migrate, migrations

_OLD = "brief,effect"
_NEW = f"{_OLD},next_jobs:newer,next_jobs:newer_elsewhere"
#: How many wait until a producer does: with those of the new version alone the old one's go on.
_OLD_STOCK, _NEW_STOCK = 240, 120
#: What other programs insert, one of each: without a queue, and a known type in a queue of the new version.
_BARE = """
INSERT INTO background_jobs (job_type, data, queue) VALUES ('newer', '{}', NULL), ('brief', '{}', 'newer')
RETURNING id"""
_BARE_STOCK = 40
#: Seconds between two of them, and between two migrations of one caller.
_BARE_PAUSE, _PAUSE = 0.02, 0.1
_PATIENCE = 60.0


@row(
    "22",
    "old and new code under load",
    "two installs, this version and a next one, which has a migration, statements that need it and job types more, each run "
    "by interpreters of its own: `workers migrate` of the next one while this one is at work, then processes of both, which "
    "replace each other in turns, by SIGTERM and kill -9, while further migrations change all tables, several at once: "
    "errors 0, lost 0, what the old one does not know untouched; a version that is not the database's says so",
)
def old_and_new(bench: Bench) -> Found:
    found = Found(injected=0, jobs=0)
    site = bench.folder.with_name(f"{bench.folder.name}-installs")
    try:
        this, following = install_this(site / "old"), install_next(site / "new")
        with nursery(**this.environment) as old, nursery(**following.environment) as new:
            for _ in range(bench.pick(full=3, quick=1, tiny=1)):
                _Upgrade(bench, found, this, following).run(old, new)
    finally:
        shutil.rmtree(site, ignore_errors=True)
    return found


class _Upgrade:
    """From one version to the next, on a database of its own."""

    def __init__(self, bench: Bench, found: Found, this: Install, following: Install) -> None:
        self._bench = bench
        self._found = found
        self._this = this
        self._following = following

    def run(self, old_ones: Nursery, new_ones: Nursery) -> None:
        bench = self._bench
        with (
            bench.database() as url,
            psycopg.connect(url, autocommit=True) as conn,
            bench.history() as history,
            crew(old_ones, url, history, "old", seed=bench.chance.random()) as olds,
            crew(new_ones, url, history, "new", seed=bench.chance.random()) as news,
        ):
            conn.execute(EFFECTS)
            old = Version(self._this, olds, _OLD, _OLD_STOCK)
            new = Version(self._following, news, _NEW, _NEW_STOCK)
            rollout = Rollout(bench, self._found, conn, history)
            with _others(url) as bare, enqueueing(old):
                rollout.first(old)
                self._new_on_older_tables(url)
                with rollout.untouched():
                    self._migrate(url, history, rollout)
                self._old_on_newer_tables(url)
                with enqueueing(new):
                    self._side_by_side(conn, url, rollout, old, new)
            eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
            rollout.end()
            self._judge(conn, history, bare, old, rollout.kills)
            swept_away(self._found, conn, news, _NEW)

    def _new_on_older_tables(self, url: str) -> None:
        """The next version says what to do, whichever way it is used."""
        started = {
            " ".join(words): self._following.python("-m", *words, database_url=url)
            for words in (
                ("workers", "stats"),
                ("workers", "run", "--app", "next_jobs:runner"),
                ("next_jobs", url),
            )
        }
        for what, process in started.items():
            _, said = process.communicate(timeout=_PATIENCE)
            self._found.expect(
                process.returncode == 1 and "run `workers migrate`" in said,
                f"the next version's `{what}` before its migration: {process.returncode}, {said}",
            )

    def _migrate(self, url: str, history: History, rollout: Rollout) -> None:
        """Several at once, among them the old version's: it is done once, and work goes on."""
        installs = [self._following, self._following, self._this]
        self._bench.chance.shuffle(installs)
        began = time.monotonic()
        commands = [each.python("-m", "workers", "migrate", database_url=url) for each in installs]
        said = []
        for command in commands:
            out, errors = command.communicate(timeout=_PATIENCE)
            self._found.expect(command.returncode == 0, f"`workers migrate`: {errors}")
            said.append(out.strip())
        self._found.injected += 1
        rest = "nothing to do: the tables are up to date"
        expected = sorted([f"applied {self._following.migration}", rest, rest])
        self._found.expect(sorted(said) == expected, f"`workers migrate` said {said}")
        rollout.more_begin(1)
        starts = [event.at for event in history.events("start") if event.at > began]
        pause = max((later - at for at, later in itertools.pairwise([began, *starts])), default=0.0)
        self._found.recovered(pause, within=5.0 * self._bench.margin)

    def _old_on_newer_tables(self, url: str) -> None:
        """The old version's `workers stats` says so and counts; its workers work there, as is seen."""
        process = self._this.python("-m", "workers", "stats", database_url=url)
        counts, said = process.communicate(timeout=_PATIENCE)
        newer = f"this database is at version {int(self._following.migration[:4])}"
        self._found.expect(
            process.returncode == 0 and "queue" in counts and newer in said,
            f"the old version's `workers stats` on newer tables: {process.returncode}, {counts}{said}",
        )

    def _side_by_side(
        self,
        conn: psycopg.Connection[Any],
        url: str,
        rollout: Rollout,
        old: Version,
        new: Version,
    ) -> None:
        """Only old workers, then some of both, then only new ones; producers of both all the time."""
        query = "SELECT count(*) FROM background_jobs WHERE origin = 'next'"
        eventually(lambda: conn.execute(query).fetchone() != (0,))
        with rollout.untouched():
            pass
        ((counted,),) = conn.execute("SELECT last_value FROM workers_completions").fetchall()
        self._found.expect(counted > 1, "the old workers call another function than the new one")
        with self._further_migrations(url):
            for number in range(self._bench.pick(full=8, quick=4, tiny=0)):
                rollout.deploy(old if number % 2 else new)
                rollout.nothing_claimed_by(old)
            rollout.deploy(new)
            rollout.nothing_claimed_by(old)

    @contextlib.contextmanager
    def _further_migrations(self, url: str) -> Iterator[None]:
        """Migrate until the end of the block: three at once with versions that come, one with the commands as they are."""
        folder = self._bench.folder.with_name(f"{self._bench.folder.name}-migrations")
        shutil.copytree(self._following.folder / "workers" / "migrations", folder)
        chance = random.Random(self._bench.chance.random())
        lock = threading.Lock()

        def again(stop: threading.Event) -> None:
            while not stop.wait(_PAUSE):
                with lock:
                    _next(folder)
                began = time.monotonic()
                migrate(url)
                with lock:
                    self._found.recovered(time.monotonic() - began)
                    self._found.injected += 1

        def command(stop: threading.Event) -> None:
            while not stop.wait(self._bench.pick(full=2.0, quick=1.0, tiny=0.5)):
                install = chance.choice([self._this, self._following])
                process = install.python("-m", "workers", "migrate", database_url=url)
                _, errors = process.communicate(timeout=_PATIENCE)
                with lock:
                    self._found.expect(process.returncode == 0, f"`workers migrate`: {errors}")
                    self._found.injected += 1

        try:
            with (
                mock.patch.object(migrations, "_folder", return_value=folder),
                _in_threads(again, again, again, command),
            ):
                yield
        finally:
            shutil.rmtree(folder)

    def _judge(
        self,
        conn: psycopg.Connection[Any],
        history: History,
        bare: list[int],
        old: Version,
        kills: int,
    ) -> None:
        found = self._found
        acked = history.events("ok")
        found.jobs += len(acked) + len(bare)
        found.judge(history.check(bare), duplicates=kills * 2 * WORKERS, by_kills=True)
        errors = [event.text for event in history.events() if _is_error(event)]
        found.expect(not errors, f"errors: {errors[:5]}")
        only_new = {event.job for event in acked if event.text.startswith("newer")} | set(bare)
        olds = {member.name for member in old.crew.members}
        touched = [
            event.job
            for event in history.events("start")
            if event.process in olds and event.job in only_new
        ]
        found.expect(not touched, f"run by old processes: {touched[:10]}")
        effects = [event.job for event in acked if event.text == Effect.job_name]
        effects_once(found, conn, effects)
        found.expect(not left(conn)["dead_jobs"], f"{left(conn)['dead_jobs']} jobs are dead")


@contextlib.contextmanager
def _others(url: str) -> Iterator[list[int]]:
    """Another program inserts what only the new version works, until the end of the block; the ids."""
    ids: list[int] = []
    query = f"SELECT count(*) FROM background_jobs WHERE {ONLY_NEW}"

    def insert(stop: threading.Event) -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not stop.wait(_BARE_PAUSE):
                (waiting,) = conn.execute(query).fetchone() or (0,)
                if waiting < _BARE_STOCK:
                    ids.extend(job for (job,) in conn.execute(_BARE))

    with _in_threads(insert):
        yield ids


def _next(folder: Path) -> None:
    """Another migration: one adds a column to all tables, to one with an index, the next one drops them."""
    tables = ("background_jobs", "worker_claims", "worker_sessions", "archived_jobs", "dead_jobs")
    version = max(int(path.name[:4]) for path in folder.glob("[0-9]*.sql")) + 1
    if version % 2:
        steps = [f"ALTER TABLE {table} DROP COLUMN IF EXISTS extra" for table in tables]
    else:
        steps = [f"ALTER TABLE {table} ADD COLUMN extra integer" for table in tables]
        steps += ["CREATE INDEX extra_key ON background_jobs (extra) WHERE extra IS NOT NULL"]
    # whole, or not there: another one may be reading the folder
    draft = folder / "draft"
    draft.write_text(";\n".join(steps))
    draft.rename(folder / f"{version:04}_extra.sql")


@contextlib.contextmanager
def _in_threads(*functions: Callable[[threading.Event], None]) -> Iterator[None]:
    """Each in a thread of its own until the end of the block; what one of them raised is raised there."""
    stop, errors = threading.Event(), list[BaseException]()

    def run(function: Callable[[threading.Event], None]) -> None:
        try:
            function(stop)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[function]) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def _is_error(event: Event) -> bool:
    """A job that failed, a statement of a producer that did, or anything at level ERROR or above in the log."""
    return event.what in ("broken", "fail") or (
        event.what == "log" and event.text.startswith(("ERROR", "CRITICAL"))
    )
