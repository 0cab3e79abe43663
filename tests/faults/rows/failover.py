"""Row 24: the primary dies, and its replica takes over."""

from __future__ import annotations

import time
from urllib.parse import quote

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.helpers.fault_jobs import Brief
from tests.helpers.own_server import OwnServer, own_server
from tests.helpers.runners import eventually
from workers import migrate

_JOBS = 200
_PATIENCE = 60.0
#: Seconds from the promotion until new jobs run.
_WITHIN = 10.0


@row(
    "24",
    "failover",
    "kill -9 of the primary of a synchronous replica, which is promoted: with a DSN that names both lost 0, and work goes "
    "on within 10 s. What an asynchronous replica loses: see Failover, below",
)
def failover(bench: Bench) -> Found:
    times = bench.pick(full=10, quick=2, tiny=1)
    found = Found(injected=times, jobs=0)
    for _ in range(times):
        with bench.server() as primary, own_server(primary=primary) as replica:
            _one(bench, found, primary, replica)
    return found


def _one(bench: Bench, found: Found, primary: OwnServer, replica: OwnServer) -> None:
    _commit_on_both(primary)
    migrate(primary.dsn)
    url = _url(primary, replica)
    with (
        bench.audited(primary.dsn, "public", afterwards=replica.dsn),
        bench.history() as history,
        bench.workers(url, history) as workers,
    ):
        for _ in range(2):
            workers.start("brief").ready()
        jobs = [Brief(key=key, seconds=0.01) for key in range(_JOBS)]
        with psycopg.connect(url, autocommit=True) as conn:
            ids = Brief.enqueue_batch(conn, jobs)
        history.wait_for("end", count=bench.chance.randrange(1, _JOBS))
        primary.kill()
        with psycopg.connect(replica.dsn, autocommit=True) as conn:
            conn.execute("SELECT pg_promote()")
        promoted = time.monotonic()
        with psycopg.connect(url, autocommit=True) as conn:
            new = Brief.enqueue_batch(conn, jobs[:10])
        done = set(new)
        eventually(lambda: done <= {event.job for event in history.events("end")}, _PATIENCE)
        found.recovered(time.monotonic() - promoted, within=_WITHIN * bench.margin)
        ids += new
        with psycopg.connect(replica.dsn, autocommit=True) as conn:
            count = "SELECT count(*) FROM background_jobs"
            eventually(lambda: conn.execute(count).fetchone() == (0,), _PATIENCE)
        # what had ended on the primary, unheard, runs again
        found.judge(history.check(ids), duplicates=2 * 50)
        found.jobs += len(ids)


def _commit_on_both(primary: OwnServer) -> None:
    """From now on a commit is one when the replica has it too."""
    with psycopg.connect(primary.dsn, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        conn.execute("SELECT pg_reload_conf()")
        waits = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        eventually(lambda: conn.execute(waits).fetchone() == (1,), _PATIENCE)


def _url(*servers: OwnServer) -> str:
    """Whichever of them takes writes."""
    hosts = [psycopg.conninfo.conninfo_to_dict(server.dsn)["host"] for server in servers]
    both = quote(",".join(map(str, hosts)), safe="")
    return f"postgresql://postgres@/postgres?host={both}&target_session_attrs=read-write"
