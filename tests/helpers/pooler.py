"""PgBouncer in transaction mode in front of a server, where it is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.helpers.history import PATIENCE
from tests.helpers.own_server import SYSTEM_USER, OwnServer

__all__ = ["NoPoolerError", "pooler", "pooler_version"]

_SETTINGS = """
[databases]
postgres = host={host} port={port} user=postgres
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
server_fast_close = 1
logfile = {folder}/log
"""


class NoPoolerError(Exception):
    """There is no PgBouncer here; the message says which package has it."""


def pooler_version() -> str:
    """The first line of what it says of itself. Raises NoPoolerError."""
    done = subprocess.run([_program(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[0]


def _program() -> str:
    search_path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if (program := shutil.which("pgbouncer", path=search_path)) is None:
        raise NoPoolerError("there is no pgbouncer: apt-get install pgbouncer")
    return program


@contextlib.contextmanager
def pooler(server: OwnServer, *, mode: str = "transaction", size: int = 5) -> Iterator[str]:
    """The DSN of a PgBouncer in front of `server`, with `size` connections to it. Raises NoPoolerError."""
    program = _program()
    folder = Path(tempfile.mkdtemp(prefix="workers-pooler-"))
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        user = SYSTEM_USER
        shutil.chown(folder, user)
    behind = conninfo_to_dict(server.dsn)
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        _SETTINGS.format(
            host=behind["host"], port=behind["port"], folder=folder, mode=mode, size=size
        )
    )
    settings.chmod(0o644)
    process = subprocess.Popen(
        [program, str(settings)],
        user=user,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        dsn = f"postgresql://postgres@/postgres?host={folder}&port=6432"
        _wait_for(process, dsn, folder)
        yield dsn
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(process: subprocess.Popen[bytes], dsn: str, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            break
    raise RuntimeError(f"pgbouncer does not answer: {(folder / 'log').read_text()}")
