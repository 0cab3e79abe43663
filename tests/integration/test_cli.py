"""The command `workers`: migrate, stats, and what it says when it can't."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.helpers.role_users import ROLES, dropped_roles, opened_users
from tests.helpers.shop import SECRET, Asks, Shop, Waits, opened_shop
from workers import migrations
from workers.job import printable
from workers.roles import roles_sql


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with opened_shop(tmp_path) as opened:
        yield opened


# -------------------------------------------------------------------------------------------------------------- migrate


def test_migrate_lists_what_it_applied(shop: Shop, raw_database_url: str) -> None:
    names = [migration.name for migration in migrations._load()]
    first = shop.call("migrate", DATABASE_URL=raw_database_url)
    assert first == (0, "".join(f"applied {name}\n" for name in names), "")
    migrations.check_migrations(raw_database_url)
    again = shop.call("migrate", "--database-url", raw_database_url)
    assert again == (0, "nothing to do: the tables are up to date\n", "")


def test_sql_needs_no_database(shop: Shop) -> None:
    assert shop.call("migrate", "--sql") == (0, migrations.migrations_sql(), "")


def test_roles_are_made_after_the_tables(
    shop: Shop, raw_database_url: str, admin: psycopg.Connection
) -> None:
    with dropped_roles(admin) as prefix:
        for first in (True, False):
            code, out, err = shop.call("migrate", "--roles", prefix, DATABASE_URL=raw_database_url)
            assert (code, err, out.startswith("applied")) == (0, "", first)
            names = ", ".join(f"{prefix}_{role}" for role in ROLES)
            assert out.endswith(f"rights are up to date: grant one of {names} to each user\n")


def test_roles_as_sql(shop: Shop) -> None:
    ended = shop.invoke("migrate", "--sql", "--roles")
    assert ended.out == migrations.migrations_sql() + "\n" + roles_sql("workers")
    assert roles_sql("shop") in shop.invoke("migrate", "--sql", "--roles", "shop").out


def test_a_prefix_that_can_not_be_one(shop: Shop, raw_database_url: str) -> None:
    code, out, err = shop.invoke("migrate", "--roles", "no such", DATABASE_URL=raw_database_url)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the prefix of roles is 'no such'" in err


def test_help_teaches_how_to_grant(shop: Shop) -> None:
    assert "GRANT workers_enqueue TO web_app" in shop.invoke("migrate", "--help").out


def test_embedded_server_lasts_as_long_as_the_command(shop: Shop) -> None:
    with tempfile.TemporaryDirectory(prefix="workers-test-") as directory:
        data = Path(directory).resolve() / "data"
        data.parent.chmod(0o711)  # or the command would have to, and say so
        url = f"embedded:{data}"
        missing = shop.invoke("stats", "--database-url", url)
        assert missing.err.startswith(f"Error: there is no embedded database in {data}")
        assert (missing.code, data.exists()) == (1, False)
        ended = shop.call("migrate", "--database-url", url)
        assert (ended.code, ended.err) == (0, "")
        assert (data / "PG_VERSION").exists()
        assert shop.call("stats", "--database-url", url) == (0, "There are no jobs.\n", "")
        assert not (data / "postmaster.pid").exists()


def test_a_temporary_database_is_no_use_to_a_command_that_ends(shop: Shop) -> None:
    ended = [shop.invoke(name, "--database-url", "embedded:") for name in ("migrate", "stats")]
    assert {(each.code, each.out) for each in ended} == {(1, "")}
    assert {each.err for each in ended} == {
        "Error: embedded: alone is a new, empty database: give embedded:PATH\n"
    }


def test_nobody_reads_the_output_to_its_end() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "workers", "migrate", "--sql"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert ended.stderr == b""


def test_rights_that_a_user_lacks_are_told_with_the_role_to_grant(
    shop: Shop, admin: psycopg.Connection, database_url: str
) -> None:
    with opened_users(admin, database_url) as users:
        code, _, err = shop.call("stats", DATABASE_URL=users.urls["enqueue"])
    assert (code, err.count("\n")) == (1, 1)
    assert "workers_readonly to look" in err


# ---------------------------------------------------------------------------------------------------------------- stats


def test_stats_as_json_is_one_line_with_stable_keys(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    Asks.enqueue_batch(conn, [Asks(), Asks()], queue="emails")
    Waits().enqueue(conn, queue="reports", delay=60)
    ended = shop.call("stats", "--json", DATABASE_URL=database_url)
    assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 1)
    found = json.loads(ended.out)
    nothing = {
        "scheduled": 0,
        "available": 0,
        "running": 0,
        "retryable": 0,
        "dead": 0,
        "archived": 0,
        "oldest": 0.0,
    }
    assert found["queues"]["reports"] == nothing | {"scheduled": 1}
    assert found["queues"]["emails"].pop("oldest") > 0
    assert found["queues"]["emails"] == {
        name: 2 if name == "available" else 0 for name in nothing if name != "oldest"
    }
    assert found["total"].keys() == nothing.keys()
    assert (found["total"]["available"], found["total"]["scheduled"]) == (2, 1)


def test_stats_for_people(shop: Shop, database_url: str, conn: psycopg.Connection) -> None:
    assert shop.call("stats", DATABASE_URL=database_url).out == "There are no jobs.\n"
    Asks.enqueue_batch(conn, [Asks(), Asks()], queue="a-queue-with-a-long-name-" + "x" * 70)
    Waits().enqueue(conn, queue="reports", delay=60)
    _, out, err = shop.call("stats", DATABASE_URL=database_url)
    lines = [line.split() for line in out.splitlines() if line.strip(" ─")]
    head, long, reports, total = lines
    assert " ".join(head) == "queue available oldest running scheduled retryable dead archived"
    assert long[0].endswith("x" * 70)
    assert re.fullmatch(r"0:\d\d:\d\d", long[2])
    assert (reports[2], total[1], total[4]) == ("0", "2", "1")
    assert err == ""


@pytest.mark.parametrize("name", ["[/red]", "[link=x]y[/link]", ":smile:", "a\x1b[2Jb"])
def test_stats_shows_names_as_they_are(
    shop: Shop, database_url: str, conn: psycopg.Connection, name: str
) -> None:
    """Whoever may enqueue may write them: they are no markup, and don't reach the terminal's own commands."""
    query = (
        "INSERT INTO background_jobs (job_type, data, priority, queue) VALUES ('x', '{}', 0, %s)"
    )
    conn.execute(query, [name])
    code, out, err = shop.call("stats", DATABASE_URL=database_url)
    assert (code, err) == (0, "")
    assert printable(name) in out
    assert "\x1b" not in out


def test_stats_says_what_is_missing(shop: Shop, raw_database_url: str) -> None:
    code, out, err = shop.call("stats", DATABASE_URL=raw_database_url)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "run `workers migrate`" in err


def test_stats_counts_on_newer_tables_and_says_so(shop: Shop, raw_database_url: str) -> None:
    """Those of the version before go on working while a new one is rolled out, and are looked at."""
    migrations.migrate(raw_database_url)
    with psycopg.connect(raw_database_url) as conn:
        Asks().enqueue(conn)
        conn.execute("INSERT INTO workers_migrations (version, name) VALUES (9999, 'later')")
    code, out, err = shop.call("stats", "--json", DATABASE_URL=raw_database_url)
    assert (code, out.count("\n"), json.loads(out)["total"]["available"]) == (0, 1, 1)
    assert err.startswith("Warning: this database is at version 9999, this library knows ")
    assert err.count("\n") == 1


def test_stats_refuses_older_tables(shop: Shop, raw_database_url: str) -> None:
    """Whatever else they have: what it counts might be missing."""
    migrations.migrate(raw_database_url)
    with psycopg.connect(raw_database_url) as conn:
        conn.execute("UPDATE workers_migrations SET version = 9999 WHERE version = 1")
    code, out, err = shop.call("stats", DATABASE_URL=raw_database_url)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "lacks 0001_initial: run `workers migrate`" in err


# --------------------------------------------------------------------------------------------------------------- errors


def test_errors_of_a_process_are_one_line(shop: Shop) -> None:
    for spec in ("nothing.there:x", "shop:fails"):
        code, out, err = shop.call("run", "--app", spec)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("Error: ")
    code, out, err = shop.call("run")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "Error: Missing option '--app'."


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing.there:x", "there is no module 'nothing'"),
        ("workers.tasks:x", "the name `workers` is this library's"),
        ("broken:x", "broken can't be imported: ModuleNotFoundError in broken.py:1"),
        ("wrong:x", "wrong can't be imported: SyntaxError"),
        (
            "shop:nothing",
            "module shop has no 'nothing'; it has runner, dies, starts_late, bad_jobs, until_empty, "
            "fails_at_the_end, own_logging, silent\n",
        ),
        ("made:nope", "module made has no 'nope'; it has ready, build, make_runner, shop\n"),
        ("shop:sys.path", "it is of type list"),
        ("shop:Asks", "it is a class"),
        ("shop:returns_nothing", "it returned None"),
        ("shop:wants_more", "wants 'mailer'"),
        ("shop:without_jobs", "no job type is registered"),
        ("shop:fails", "RuntimeError in shop.py:"),
    ],
)
def test_bad_app_is_one_clear_line(shop: Shop, spec: str, message: str) -> None:
    code, out, err = shop.invoke("run", "--app", spec)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1
    assert SECRET not in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run"], "Missing option '--app'"),
        (["run", "--app", "shop"], "give it as module:attr"),
        (["run", "--app", "shop.py:runner"], "give the module, not its file: shop:runner"),
        (["run", "--app", "./jobs/shop.py:make"], "give the module, not its file: jobs.shop:make"),
        (["run", "--app", "jobs/shop"], "give the module, not its file: jobs.shop:runner"),
        (["run", "--app", "shop:runner"], "give --database-url or set DATABASE_URL"),
        (["run", "--app", "shop:fails", "--database-url", "x"], "brings its own"),
        (["stats"], "Give --database-url or set DATABASE_URL"),
    ],
)
def test_wrong_usage_exits_with_2(shop: Shop, args: list[str], message: str) -> None:
    code, out, err = shop.invoke(*args)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_debug_shows_the_traceback(shop: Shop) -> None:
    for flag in (["--debug"], ["--log-level", "debug"]):
        code, _, err = shop.invoke("run", "--app", "shop:fails", *flag)
        assert code == 1
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1].startswith("Error: RuntimeError in shop.py:")
        assert SECRET not in err


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://shop:{SECRET}@127.0.0.1:1/shop",
        f"postgresql+psycopg://shop:{SECRET}@127.0.0.1:1/shop",
        f"host=127.0.0.1 port=1 password={SECRET}",
        f"postgresql://shop:{SECRET[:3]}@{SECRET}@127.0.0.1:1/shop",
        f"postgresql://shop:x/{SECRET}@127.0.0.1/shop",
        f"mysql://shop:{SECRET}@127.0.0.1/shop",
    ],
)
def test_password_is_never_shown(shop: Shop, url: str) -> None:
    code, out, err = shop.invoke("stats", DATABASE_URL=url)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the database" in err
    assert SECRET not in err


def test_password_is_not_in_tracebacks(shop: Shop) -> None:
    url = f"postgresql://shop:{SECRET}@127.0.0.1:1/shop"
    for command in ("stats", "migrate"):
        err = shop.invoke(command, "--debug", DATABASE_URL=url).err
        assert "Traceback" in err
        assert SECRET not in err
