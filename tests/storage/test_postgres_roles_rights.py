"""Roles: who may do what, told by the catalog, all of it, and compared with what is written here."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.helpers.role_users import ROLES, Users, opened_users

TABLE_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
ROWS = {"SELECT", "INSERT", "UPDATE", "DELETE"}
TABLES: dict[str, dict[str, set[str]]] = {
    "background_jobs": {"worker": ROWS, "readonly": {"SELECT"}},
    "worker_sessions": {"worker": ROWS, "readonly": {"SELECT"}},
    "worker_claims": {"worker": ROWS, "readonly": {"SELECT"}},
    "dead_jobs": {"worker": ROWS, "readonly": {"SELECT"}},
    "archived_jobs": {"worker": {"SELECT", "INSERT", "UPDATE"}, "readonly": {"SELECT"}},
    "workers_migrations": {"worker": {"SELECT"}, "readonly": {"SELECT"}},
}
PRODUCERS_COLUMNS = {"job_type", "data", "priority", "queue", "run_at"}
SEQUENCES: dict[str, set[str]] = {
    "background_jobs_id_seq": {"enqueue", "worker"},
    "background_jobs_position_seq": {"enqueue", "worker"},
    "worker_sessions_id_seq": {"worker"},
}
FUNCTIONS: dict[str, set[str]] = {
    "workers_channel": {"enqueue", "worker"},
    "workers_notify": {"enqueue", "worker"},
    "workers_run_at": {"enqueue", "worker"},
    "workers_enqueue": {"enqueue", "worker"},
    "workers_enqueue_deduplicated": {"enqueue", "worker"},
    "workers_lock_class": {"worker"},
    "workers_dedup_key": {"worker"},
    "workers_complete": {"worker"},
    "workers_check_jobs": set(),
}
DEFINERS = {"workers_enqueue", "workers_enqueue_deduplicated"}
IN_SCHEMA = "relnamespace = quote_ident(current_schema())::regnamespace"


@pytest.fixture
def users(admin: psycopg.Connection, database_url: str) -> Iterator[Users]:
    with opened_users(admin, database_url) as opened:
        yield opened


def expected(table: str, role: str) -> set[str]:
    return set(TABLE_RIGHTS) if role == "migrator" else TABLES[table].get(role, set())


def test_tables(conn: psycopg.Connection, users: Users) -> None:
    kinds = f"SELECT relname FROM pg_class WHERE {IN_SCHEMA} AND relkind IN ('r', 'v', 'p', 'm')"
    names = [name for (name,) in conn.execute(kinds)]
    assert set(names) == TABLES.keys()
    for role in ROLES:
        for name in names:
            rights = {
                right
                for right in TABLE_RIGHTS
                if ask(conn, "has_table_privilege", users.group(role), name, right)
            }
            assert rights == expected(name, role), (role, name)


def test_columns(conn: psycopg.Connection, users: Users) -> None:
    columns = conn.execute(
        f"SELECT relname, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE {IN_SCHEMA}"
        " AND relkind = 'r' AND attnum > 0 AND NOT attisdropped"
    ).fetchall()
    for role in ROLES:
        for table, column in columns:
            wanted = expected(table, role) & {"SELECT", "INSERT", "UPDATE", "REFERENCES"}
            if role == "enqueue" and table == "background_jobs" and column in PRODUCERS_COLUMNS:
                wanted = {"INSERT"}
            rights = {
                right
                for right in ("SELECT", "INSERT", "UPDATE", "REFERENCES")
                if ask(conn, "has_column_privilege", users.group(role), table, column, right)
            }
            assert rights == wanted, (role, table, column)


def test_sequences(conn: psycopg.Connection, users: Users) -> None:
    names = conn.execute(f"SELECT relname FROM pg_class WHERE {IN_SCHEMA} AND relkind = 'S'")
    assert {name for (name,) in names} == SEQUENCES.keys()
    for role in ("enqueue", "worker", "readonly"):
        for name, who in SEQUENCES.items():
            rights = {
                right
                for right in ("USAGE", "SELECT", "UPDATE")
                if ask(conn, "has_sequence_privilege", users.group(role), name, right)
            }
            assert rights == ({"USAGE"} if role in who else set()), (role, name)


def test_functions(conn: psycopg.Connection, users: Users) -> None:
    found = conn.execute(
        "SELECT proname, oid, prosecdef, proconfig, current_schema() FROM pg_proc"
        " WHERE pronamespace = quote_ident(current_schema())::regnamespace"
    ).fetchall()
    assert {row[0] for row in found} == FUNCTIONS.keys()
    assert {row[0] for row in found if row[2]} == DEFINERS
    for name, oid, definer, settings, schema in found:
        assert definer == (f"search_path={schema}, pg_temp" in (settings or [])), name
        for role in ("enqueue", "worker", "readonly"):
            allowed = ask(conn, "has_function_privilege", users.group(role), oid, "EXECUTE")
            assert allowed == (role in FUNCTIONS[name]), (role, name)
        assert not ask(conn, "has_function_privilege", "public", oid, "EXECUTE"), name
        assert ask(conn, "has_function_privilege", users.group("migrator"), oid, "EXECUTE")


def test_types(conn: psycopg.Connection, users: Users) -> None:
    """Of their own: PostgreSQL makes one for each table, and one of arrays for each of all."""
    found = conn.execute(
        "SELECT typname, oid FROM pg_type WHERE typnamespace = quote_ident(current_schema())::regnamespace"
        " AND typtype <> 'c' AND typelem = 0"
    ).fetchall()
    assert [name for name, _ in found] == ["workers_payload"]
    for name, oid in found:
        assert not ask(conn, "has_type_privilege", "public", oid, "USAGE"), name
        for role in ROLES:
            allowed = ask(conn, "has_type_privilege", users.group(role), oid, "USAGE")
            assert allowed == (role != "enqueue"), (role, name)


def test_schema_and_roles(conn: psycopg.Connection, users: Users) -> None:
    ((schema,),) = conn.execute("SELECT current_schema()")
    for role in ROLES:
        assert ask(conn, "has_schema_privilege", users.group(role), schema, "USAGE")
        creates = ask(conn, "has_schema_privilege", users.group(role), schema, "CREATE")
        assert creates == (role == "migrator")
    rows = conn.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s) AND NOT (rolcanlogin OR rolsuper OR rolcreaterole"
        " OR rolcreatedb OR rolreplication OR rolbypassrls)",
        [[users.group(role) for role in ROLES]],
    )
    assert len(rows.fetchall()) == 4
    groups = "SELECT count(*) FROM pg_auth_members JOIN pg_roles ON pg_roles.oid = member WHERE rolname = ANY(%s)"
    assert conn.execute(groups, [[users.group(role) for role in ROLES]]).fetchone() == (0,)


def test_the_migrator_owns_everything(conn: psycopg.Connection, users: Users) -> None:
    owners = conn.execute(
        f"SELECT relowner::regrole::text FROM pg_class WHERE {IN_SCHEMA} UNION"
        " SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = quote_ident(current_schema())::regnamespace"
        " UNION SELECT typowner::regrole::text FROM pg_type"
        " WHERE typnamespace = quote_ident(current_schema())::regnamespace AND typtype = 'd'"
    )
    assert owners.fetchall() == [(users.group("migrator"),)]


def ask(conn: psycopg.Connection, function: str, *arguments: object) -> bool:
    marks = ", ".join(["%s"] * len(arguments))
    row = conn.execute(f"SELECT {function}({marks})".encode(), arguments).fetchone()
    assert row is not None
    return bool(row[0])
