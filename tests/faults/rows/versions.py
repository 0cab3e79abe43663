"""Row 22: two versions of an application on one database, deployed in turns, and migrated meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import effects_once, swept_away
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, Elsewhere, Later
from tests.helpers.history import Event, History
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually, left
from workers import migrate, migrations

_OLD, _NEW = "brief,effect", "brief,effect,later,elsewhere"
#: What the old version enqueues beside ordinary jobs.
_TRANSACTIONAL = "effect"
_WORKERS = 4
_BATCH = 5
#: Jobs of one version that wait at most: the old one's workers leave the new one's alone for a while.
_BACKLOG = 200
#: Seconds between two batches of an application.
_PAUSE = 0.02
_PATIENCE = 60.0
#: What only the new version works, by type or by queue. Without a queue as well, as other programs may insert it.
_ONLY_NEW = "(job_type IN ('later', 'elsewhere') OR queue = 'new')"
_BARE = (
    """INSERT INTO background_jobs (job_type, data) VALUES ('later', '{"key": 0}') RETURNING id"""
)


@row(
    "22",
    "old and new code under load",
    "processes of two versions replace each other in turns, by SIGTERM and kill -9, while `workers migrate` runs again and "
    "again, by several at once, adding and dropping columns: errors 0, lost 0, what the old one does not know untouched",
)
def old_and_new(bench: Bench) -> Found:
    deployments = bench.pick(full=40, quick=4, tiny=0)
    found = Found(injected=0, jobs=0)
    with bench.stage() as (url, conn, history, workers):
        conn.execute(EFFECTS)
        rollout = _Rollout(bench, found, conn, history, workers)
        with _applications(url) as ids, _migrations(bench, found, url):
            rollout.first()
            rollout.untouched()
            for number in range(deployments):
                rollout.deploy(_OLD if number % 2 else _NEW)
            rollout.deploy(_NEW)
        eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
        rollout.end()
        _judge(found, conn, history, ids, rollout)
        swept_away(found, conn, workers, _NEW)
    return found


class _Rollout:
    """The processes that work, and their replacement one by one."""

    def __init__(
        self,
        bench: Bench,
        found: Found,
        conn: psycopg.Connection[Any],
        history: History,
        workers: Crew,
    ) -> None:
        self._bench = bench
        self._found = found
        self._conn = conn
        self._history = history
        self._workers = workers
        self._fleet: list[WorkerProcess] = []
        self._size = bench.pick(full=3, quick=3, tiny=2)
        # jobs that begin between two replacements
        self._between = bench.pick(full=50, quick=50, tiny=15)
        self.old: set[str] = set()
        self.kills = 0

    def _start(self, version: str) -> WorkerProcess:
        member = self._workers.start(version, workers=_WORKERS, poll_interval=0.2)
        if version == _OLD:
            self.old.add(member.name)
        return member

    def first(self) -> None:
        """Only old ones."""
        self._fleet = [self._start(_OLD) for _ in range(self._size)]
        for member in self._fleet:
            member.ready()

    def untouched(self) -> None:
        """While there are only old ones, not even a new version of a row that they do not know is written."""
        query = f"SELECT id, ctid::text, xmin::text FROM background_jobs WHERE {_ONLY_NEW}"
        eventually(lambda: self._conn.execute(query).rowcount >= _BATCH)
        before = set(self._conn.execute(query))
        self._more_begin(2 * self._between)
        changed = before - set(self._conn.execute(query))
        self._found.expect(not changed, f"rows that were touched: {sorted(changed)[:10]}")

    def deploy(self, version: str) -> None:
        """Replace all of them: a new one is ready before an old one ends, in order or not."""
        for number, member in enumerate(self._fleet):
            self._fleet[number] = self._start(version)
            self._fleet[number].ready()
            if self._bench.chance.random() < 0.3:
                member.kill()
                self.kills += 1
            else:
                member.send(signal.SIGTERM)
                self._found.expect(member.wait() == 0, f"{member.name} did not end well")
            self._found.injected += 1
            self._more_begin(self._between)
            self._nothing_claimed_by_old()

    def _more_begin(self, count: int) -> None:
        so_far = len(self._history.events("start"))
        self._history.wait_for("start", count=so_far + count, seconds=_PATIENCE)

    def _nothing_claimed_by_old(self) -> None:
        rows = self._conn.execute(
            "SELECT job.id, session.name FROM background_jobs AS job"
            " JOIN worker_sessions AS session ON session.id = session_id"
            f" WHERE {_ONLY_NEW} AND session.name = ANY(%s)",
            [list(self.old)],
        ).fetchall()
        self._found.expect(not rows, f"claimed by old processes: {rows[:10]}")

    def end(self) -> None:
        """All of them, in order."""
        for member in self._fleet:
            member.send(signal.SIGTERM)
            self._found.expect(member.wait() == 0, f"{member.name} did not end well")


@contextlib.contextmanager
def _applications(url: str) -> Iterator[dict[int | None, str]]:
    """Both versions enqueue until the end of the block; which one enqueued what, transactional jobs apart."""
    ids: dict[int | None, str] = {}

    def old(conn: psycopg.Connection[Any]) -> dict[int | None, str]:
        brief = Brief.enqueue_batch(conn, _some(Brief))
        effects = Effect.enqueue_batch(conn, _some(Effect))
        return dict.fromkeys(brief, _OLD) | dict.fromkeys(effects, _TRANSACTIONAL)

    def new(conn: psycopg.Connection[Any]) -> dict[int | None, str]:
        found = Later.enqueue_batch(conn, _some(Later), priority=5)
        found += Elsewhere.enqueue_batch(conn, _some(Elsewhere))
        found += Brief.enqueue_batch(conn, _some(Brief), queue="new")
        found += [job for (job,) in conn.execute(_BARE)]
        return dict.fromkeys(found, _NEW)

    def work(stop: threading.Event, enqueue: Any, which: str) -> None:
        query = f"SELECT count(*) FROM background_jobs WHERE {which}"
        with psycopg.connect(url, autocommit=True) as conn:
            while not stop.wait(_PAUSE):
                (waiting,) = conn.execute(query).fetchone() or (0,)
                if waiting < _BACKLOG:
                    with conn.transaction():
                        added = enqueue(conn)
                    ids.update(added)

    with _in_threads(
        lambda stop: work(stop, old, f"NOT {_ONLY_NEW}"),
        lambda stop: work(stop, new, _ONLY_NEW),
    ):
        yield ids


def _some(kind: Any) -> list[Any]:
    return [kind(key=key) for key in range(_BATCH)]


@contextlib.contextmanager
def _migrations(bench: Bench, found: Found, url: str) -> Iterator[None]:
    """Migrate until the end of the block: three at once with versions that come, one with the command as it is."""
    with tempfile.TemporaryDirectory(prefix="faults-migrations-") as name:
        folder = Path(name)
        shutil.copytree(Path(str(migrations._folder())), folder, dirs_exist_ok=True)
        lock = threading.Lock()

        def again(stop: threading.Event) -> None:
            while not stop.wait(_PAUSE):
                with lock:
                    _next(folder)
                began = time.monotonic()
                migrate(url)
                with lock:
                    found.recovered(time.monotonic() - began)
                    found.injected += 1

        def command(stop: threading.Event) -> None:
            words = [sys.executable, "-m", "workers", "migrate"]
            env = os.environ | {"DATABASE_URL": url}
            while not stop.wait(bench.pick(full=1.0, quick=0.5, tiny=0.2)):
                done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
                with lock:
                    found.expect(done.returncode == 0, f"`workers migrate`: {done.stderr}")
                    found.injected += 1

        with (
            mock.patch.object(migrations, "_folder", return_value=folder),
            _in_threads(again, again, again, command),
        ):
            yield


def _next(folder: Path) -> None:
    """Another migration: one adds a column with an index, the next one drops it."""
    version = max(int(path.name[:4]) for path in folder.glob("[0-9]*.sql")) + 1
    sql = "ALTER TABLE background_jobs DROP COLUMN extra"
    if version % 2 == 0:
        sql = (
            "ALTER TABLE background_jobs ADD COLUMN extra integer;\n"
            "CREATE INDEX extra_key ON background_jobs (extra) WHERE extra IS NOT NULL"
        )
    # whole, or not there: another one may be reading the folder
    draft = folder / "draft"
    draft.write_text(sql)
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


def _judge(
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    ids: dict[int | None, str],
    rollout: _Rollout,
) -> None:
    events = history.events()
    found.jobs = len(ids)
    found.judge(history.check(ids), duplicates=rollout.kills * 2 * _WORKERS)
    errors = [event.text for event in events if _is_error(event)]
    found.expect(not errors, f"errors: {errors[:5]}")
    touched = [
        event.job
        for event in events
        if event.what == "start" and event.process in rollout.old and ids.get(event.job) == _NEW
    ]
    found.expect(not touched, f"run by old processes: {touched[:10]}")
    effects_once(found, conn, [job for job, what in ids.items() if what == _TRANSACTIONAL])
    found.expect(not left(conn)["dead_jobs"], f"{left(conn)['dead_jobs']} jobs are dead")


def _is_error(event: Event) -> bool:
    """A job that failed, or anything at level ERROR or above in the log."""
    return event.what == "broken" or (
        event.what == "log" and event.text.startswith(("ERROR", "CRITICAL"))
    )
