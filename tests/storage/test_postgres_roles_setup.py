"""Setting up roles: by whom, what is said to those who can't, and migrations by members of the migrator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql

from tests.helpers.role_users import ROLES, dropped_roles, login, user_url
from tests.helpers.server import TestServer, connection_url
from workers import ConfigurationError, MigrationError, apply_roles, migrate, migrations
from workers.migrations import Migration, migrations_sql
from workers.roles import roles_sql


class Place(NamedTuple):
    """A schema that belongs to an ordinary user; every name begins with `prefix`."""

    prefix: str
    schema: str
    owner: str
    url: str

    def as_user(self, name: str) -> str:
        return user_url(self.url, f"{self.prefix}_{name}")


@pytest.fixture
def place(admin: psycopg.Connection, server: TestServer) -> Iterator[Place]:
    with dropped_roles(admin) as prefix:
        owner, schema = f"{prefix}_owner", f"{prefix}_schema"
        login(admin, owner, rights="CREATEROLE")
        create = "CREATE SCHEMA {} AUTHORIZATION {}"
        admin.execute(sql.SQL(create).format(*map(sql.Identifier, (schema, owner))))
        url = connection_url(server.dsn, options=f"-csearch_path={schema}")
        yield Place(prefix, schema, owner, user_url(url, owner))


def role_names(admin: psycopg.Connection, prefix: str) -> set[str]:
    found = admin.execute("SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [prefix])
    return {name for (name,) in found} & {f"{prefix}_{role}" for role in ROLES}


def test_an_owner_with_createrole_needs_no_superuser(
    admin: psycopg.Connection, place: Place
) -> None:
    migrate(place.url)
    names = [f"{place.prefix}_{role}" for role in ROLES]
    for _ in range(2):
        assert apply_roles(place.url, place.prefix) == names
    assert role_names(admin, place.prefix) == set(names)
    with psycopg.connect(place.url) as conn:  # a member of the migrator: all as before
        conn.execute("SELECT workers_enqueue('mail', '{}')")
        assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (1,)
    assert migrate(place.url) == []


@pytest.mark.parametrize(
    "first",
    [
        "LOCK TABLE worker_sessions IN ROW EXCLUSIVE MODE",
        "LOCK TABLE worker_claims IN ROW EXCLUSIVE MODE",
        "LOCK TABLE dead_jobs IN ROW EXCLUSIVE MODE",
        "SELECT nextval('background_jobs_id_seq')",
        "SELECT nextval('background_jobs_position_seq')",
    ],
)
async def test_tables_change_hands_without_a_deadlock(place: Place, first: str) -> None:
    """Whoever uses one of them, or draws a number, and then uses another goes on, and so do the roles."""
    connect = psycopg.AsyncConnection.connect
    async with (
        await connect(place.url) as runner,
        await connect(place.url) as conn,
        await connect(place.url, autocommit=True) as asking,
    ):
        await migrate(conn)
        await runner.execute(first.encode())
        applying = asyncio.ensure_future(apply_roles(conn, place.prefix))
        await blocked(conn, asking)
        await runner.execute("LOCK TABLE background_jobs IN ROW EXCLUSIVE MODE")
        await runner.commit()
        assert len(await applying) == 4


async def test_who_has_read_what_was_applied_keeps_no_job_waiting(place: Place) -> None:
    """As `migrate` in somebody's open transaction does: the tables are taken after that one."""
    connect = psycopg.AsyncConnection.connect
    async with (
        await connect(place.url) as reader,
        await connect(place.url) as conn,
        await connect(place.url, autocommit=True) as asking,
    ):
        await migrate(conn)
        await conn.commit()
        assert await migrate(reader) == []
        await reader.execute("SELECT FROM workers_migrations")
        applying = asyncio.ensure_future(apply_roles(conn, place.prefix))
        await blocked(conn, asking)
        await asking.execute("SET lock_timeout = '1ms'")
        await asking.execute("SELECT workers_enqueue('mail', '{}')")
        await reader.commit()
        assert len(await applying) == 4


async def blocked(conn: psycopg.AsyncConnection[Any], asking: psycopg.AsyncConnection[Any]) -> None:
    """Wait until `conn` waits for a lock."""
    blockers: list[int] = []
    while not blockers:
        cursor = await asking.execute("SELECT pg_blocking_pids(%s)", [conn.info.backend_pid])
        ((blockers,),) = await cursor.fetchall()


@pytest.mark.parametrize("cursor", [psycopg.RawCursor, psycopg.ClientCursor])
def test_cursors_of_the_connections_own_kind(
    place: Place, cursor: type[psycopg.Cursor[tuple[Any, ...]]]
) -> None:
    with psycopg.connect(place.url, cursor_factory=cursor) as conn:
        assert migrate(conn)
        assert len(apply_roles(conn, place.prefix)) == 4


async def test_cursors_of_an_asynchronous_connections_own_kind(place: Place) -> None:
    connect = psycopg.AsyncConnection.connect
    async with await connect(place.url, cursor_factory=psycopg.AsyncRawCursor) as conn:
        assert await migrate(conn)
        assert len(await apply_roles(conn, place.prefix)) == 4


async def test_asynchronous_connections(place: Place) -> None:
    async with await psycopg.AsyncConnection.connect(place.url, autocommit=True) as conn:
        await migrate(conn)
        assert len(await apply_roles(conn, place.prefix)) == 4


def test_an_open_transaction_is_joined(admin: psycopg.Connection, place: Place) -> None:
    migrate(place.url)
    with psycopg.connect(place.url) as conn:
        conn.execute("SELECT 1")
        apply_roles(conn, place.prefix)
        conn.rollback()
    assert role_names(admin, place.prefix) == set()


def test_members_of_the_migrator_share_what_they_make(
    admin: psycopg.Connection, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them applies a migration, the next one is not refused."""
    migrate(place.url)
    apply_roles(place.url, place.prefix)
    for name in ("one", "two"):
        login(admin, f"{place.prefix}_{name}", f"{place.prefix}_migrator")
    present = migrations._load()
    second = Migration(
        2, "0002_second", b"CREATE TABLE later (); ALTER TABLE dead_jobs ADD more text"
    )
    monkeypatch.setattr(migrations, "_load", lambda: [*present, second])
    with psycopg.connect(place.as_user("one"), autocommit=True) as conn:
        assert migrate(conn) == ["0002_second"]
        assert conn.execute("SELECT current_user").fetchone() == (f"{place.prefix}_one",)
        assert migrate(conn) == []
    owner = "SELECT tableowner FROM pg_tables WHERE schemaname = %s AND tablename = 'later'"
    assert admin.execute(owner, [place.schema]).fetchone() == (f"{place.prefix}_migrator",)
    third = Migration(3, "0003_third", b"ALTER TABLE later ADD more text")
    monkeypatch.setattr(migrations, "_load", lambda: [*present, second, third])
    with psycopg.connect(place.as_user("two")) as conn:
        conn.execute("SELECT 1")
        assert migrate(conn) == ["0003_third"]
        assert conn.execute("SELECT current_user").fetchone() == (f"{place.prefix}_two",)


@pytest.mark.parametrize("open_transaction", [False, True])
def test_a_schema_that_is_found_by_the_users_name_stays_the_one_that_is_migrated(
    admin: psycopg.Connection,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    open_transaction: bool,
) -> None:
    """As the server's own search_path finds it, which says "$user" first: who migrates is another user for a while."""
    rename = sql.SQL("ALTER SCHEMA {} RENAME TO {}")
    admin.execute(rename.format(*map(sql.Identifier, (place.schema, place.owner))))
    url = connection_url(place.url, options='-csearch_path="$user",public')
    migrate(url)
    apply_roles(url, place.prefix)
    second = Migration(
        2, "0002_second", b"CREATE TABLE later (); ALTER TABLE dead_jobs ADD more text"
    )
    known = [*migrations._load(), second]
    monkeypatch.setattr(migrations, "_load", lambda: known)
    with psycopg.connect(url) as conn:
        if open_transaction:
            conn.execute("SELECT 1")
        assert migrate(conn) == ["0002_second"]
        found = conn.execute(
            "SELECT current_user, current_schema(), current_setting('search_path')"
        )
        assert found.fetchone() == (place.owner, place.owner, '"$user",public')
    later = (
        "SELECT schemaname, tableowner FROM pg_tables WHERE tablename = 'later' AND schemaname = %s"
    )
    assert admin.execute(later, [place.owner]).fetchone() == (
        place.owner,
        f"{place.prefix}_migrator",
    )


def test_a_schema_has_one_prefix(admin: psycopg.Connection, place: Place) -> None:
    """A second one would take the tables away from the first one's migrator."""
    migrate(place.url)
    first, second = f"{place.prefix}_one", f"{place.prefix}_two"
    apply_roles(place.url, first)
    refused = f"belong to {first}_migrator, .* one prefix per schema. Run `workers migrate --roles {first}`"
    with pytest.raises(MigrationError, match=refused):
        apply_roles(place.url, second)
    with psycopg.connect(place.url, autocommit=True) as conn:
        conn.execute("SELECT set_config('workers.role_prefix', %s, false)", [second])
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="one prefix per"):
            conn.execute(migrations.migration_file("roles.sql"))
    assert role_names(admin, second) == set()
    owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = %s"
    assert admin.execute(owners, [place.schema]).fetchall() == [(f"{first}_migrator",)]
    apply_roles(place.url, first)


def test_names_are_quoted(admin: psycopg.Connection, place: Place) -> None:
    migrate(place.url)
    prefix = f"{place.prefix}_A.b:c-D"
    assert apply_roles(place.url, prefix) == [f"{prefix}_{role}" for role in ROLES]
    assert role_names(admin, prefix) == {f"{prefix}_{role}" for role in ROLES}


@pytest.mark.parametrize("prefix", ["", "a b", 'x"; DROP TABLE background_jobs; --', "x" * 55, "é"])
def test_no_other_names(database_url: str, prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="the prefix of roles"):
        apply_roles(database_url, prefix)
    with pytest.raises(ConfigurationError, match="the prefix of roles"):
        roles_sql(prefix)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("SELECT set_config('workers.role_prefix', %s, false)", [prefix or " "])
        with pytest.raises(psycopg.errors.InvalidName, match="a prefix of roles must be"):
            conn.execute(migrations.migration_file("roles.sql"))


def test_the_sql_does_the_same(admin: psycopg.Connection, place: Place) -> None:
    with psycopg.connect(place.url) as conn:
        conn.execute((migrations_sql() + roles_sql(place.prefix)).encode())
    assert role_names(admin, place.prefix) == {f"{place.prefix}_{role}" for role in ROLES}


# --------------------------------------------------------------------------------------------------------- who can't


def test_without_tables(place: Place) -> None:
    with pytest.raises(MigrationError, match="run `workers migrate`"):
        apply_roles(place.url, place.prefix)


@pytest.mark.parametrize("as_sql", [False, True])
def test_tables_in_another_schema_of_the_search_path(
    admin: psycopg.Connection, place: Place, as_sql: bool
) -> None:
    """Half of the rights would be on this one, and half on that one."""
    migrate(place.url)
    prefix, script = place.prefix, roles_sql(place.prefix).encode()
    front = f"{prefix}_front"
    admin.execute(
        sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(
            *map(sql.Identifier, (front, place.owner))
        )
    )
    with psycopg.connect(place.url, autocommit=True) as conn:
        conn.execute(f"SET search_path = {front}, {place.schema}".encode())
        apply = (lambda: conn.execute(script)) if as_sql else (lambda: apply_roles(conn, prefix))
        with pytest.raises((MigrationError, psycopg.errors.UndefinedTable), match="no tables"):
            apply()
    assert role_names(admin, place.prefix) == set()


def test_tables_that_somebody_uses_for_long(
    admin: psycopg.Connection, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for them keeps everybody else from them."""
    migrate(place.url)
    with psycopg.connect(place.url) as job, psycopg.connect(place.url) as conn:
        job.execute("SELECT FROM background_jobs FOR UPDATE")
        brief = migrations.BE_BRIEF.replace("'5s'", "'50ms'")
        monkeypatch.setattr("workers.roles.BE_BRIEF", brief)
        conn.execute("SET statement_timeout = '10s'")
        conn.commit()
        with pytest.raises(MigrationError, match="somebody's transaction"):
            apply_roles(conn, place.prefix)
        assert conn.execute("SELECT workers_enqueue('mail', '{}')").fetchone() == (1,)
    assert role_names(admin, place.prefix) == set()


def test_without_createrole(admin: psycopg.Connection, place: Place) -> None:
    migrate(place.url)
    admin.execute(sql.SQL("ALTER ROLE {} NOCREATEROLE").format(sql.Identifier(place.owner)))
    with pytest.raises(MigrationError, match=f'ALTER ROLE "{place.owner}" CREATEROLE') as raised:
        apply_roles(place.url, place.prefix)
    assert f"{place.prefix}_enqueue" in str(raised.value)


def test_without_the_migrator(admin: psycopg.Connection, place: Place) -> None:
    migrate(place.url)
    admin.execute(sql.SQL("ALTER ROLE {} NOCREATEROLE").format(sql.Identifier(place.owner)))
    for role in ROLES:
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(f"{place.prefix}_{role}")))
    advice = f'GRANT "{place.prefix}_migrator" TO "{place.owner}"'
    with pytest.raises(MigrationError, match=advice):
        apply_roles(place.url, place.prefix)
    admin.execute(advice.encode())
    assert apply_roles(place.url, place.prefix)


def test_without_the_tables_owner(admin: psycopg.Connection, place: Place) -> None:
    migrate(place.url)
    other = f"{place.prefix}_other"
    login(admin, other, rights="CREATEROLE")
    names = sql.Identifier(place.schema), sql.Identifier(other)
    admin.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(*names))
    with pytest.raises(MigrationError, match="only the owner of schema"):
        apply_roles(place.as_user("other"), place.prefix)
    admin.execute(sql.SQL("ALTER SCHEMA {} OWNER TO {}").format(*names))
    with pytest.raises(MigrationError, match=f"belongs to {place.owner}, and only its owner"):
        apply_roles(place.as_user("other"), place.prefix)
    assert role_names(admin, place.prefix) == set()
