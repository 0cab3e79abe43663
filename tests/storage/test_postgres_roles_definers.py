"""The functions that run as their owner: they check all by themselves, and nothing of the caller's is run in them.

Nor is what the migrator puts beside them run by a superuser who migrates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import CheckViolation
from psycopg.types.json import Jsonb

from tests.helpers.role_users import Users
from workers import MigrationError, apply_roles, migrate, migrations
from workers.migrations import Migration
from workers.roles import roles_sql

BOTH = [
    "SELECT {schema}.workers_enqueue('mail', '{{}}', 'default', delay => '1 minute')",
    "SELECT {schema}.workers_enqueue('mail', '{{}}', 'default')",
    "SELECT {schema}.workers_enqueue('mail', '{{}}', 'default', deduplicated => true)",
    "SELECT {schema}.workers_enqueue_deduplicated('mail', ARRAY['{{}}'], 0::smallint, 'default', NULL)",
]
# Everything that the functions name, in a schema of the attacker's, each of it telling as whom it was run.
TRAPS = """
CREATE TABLE seen (who text);
CREATE TABLE background_jobs (job_type text, data jsonb);
CREATE SEQUENCE background_jobs_id_seq;
CREATE SEQUENCE background_jobs_position_seq;
GRANT ALL ON ALL TABLES IN SCHEMA {evil} TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA {evil} TO PUBLIC;
CREATE FUNCTION trap() RETURNS void LANGUAGE sql AS 'INSERT INTO {evil}.seen VALUES (current_user)';
CREATE FUNCTION workers_notify(text, smallint, bigint) RETURNS void LANGUAGE sql AS 'SELECT {evil}.trap()';
CREATE FUNCTION workers_check_jobs(text, text, text[]) RETURNS void LANGUAGE sql AS 'SELECT {evil}.trap()';
CREATE FUNCTION workers_run_at(timestamptz, double precision) RETURNS timestamptz LANGUAGE sql
    AS 'SELECT {evil}.trap(); SELECT NULL::timestamptz';
CREATE FUNCTION workers_run_at(timestamptz, numeric) RETURNS timestamptz LANGUAGE sql
    AS 'SELECT {evil}.trap(); SELECT NULL::timestamptz';
CREATE FUNCTION workers_dedup_key(text, jsonb, smallint) RETURNS bytea LANGUAGE sql
    AS 'SELECT {evil}.trap(); SELECT NULL::bytea';
CREATE FUNCTION octet_length(text) RETURNS integer LANGUAGE sql AS 'SELECT {evil}.trap(); SELECT 0';
CREATE FUNCTION nextval(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT {evil}.trap(); SELECT 1::bigint';
CREATE FUNCTION differs(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT {evil}.trap(); SELECT false';
CREATE OPERATOR !~ (LEFTARG = text, RIGHTARG = text, FUNCTION = differs);
CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = differs);
CREATE FUNCTION outside(integer, integer) RETURNS boolean LANGUAGE sql AS 'SELECT {evil}.trap(); SELECT false';
CREATE OPERATOR < (LEFTARG = integer, RIGHTARG = integer, FUNCTION = outside);
CREATE OPERATOR > (LEFTARG = integer, RIGHTARG = integer, FUNCTION = outside);
"""
#: What PostgreSQL takes instead of its own where it finds them, as they fit a call without conversions; and their results.
BETTER = {
    "array_to_string(text[], text)": "text",
    "format(text, text)": "text",
    "format(text, text, text)": "text",
    "has_schema_privilege(text, oid, text)": "boolean",
    "has_schema_privilege(text, text, text)": "boolean",
    "pg_advisory_xact_lock(integer, smallint)": "void",
    "quote_ident(name)": "text",
    "regexp_replace(name, text, text)": "text",
    "right(name, integer)": "text",
    "starts_with(name, text)": "boolean",
    "unnest(text[])": "SETOF text",
}


@pytest.fixture
def evil(admin: psycopg.Connection, producer: psycopg.Connection) -> Iterator[str]:
    """A schema of the producer's own."""
    ((user, schema),) = producer.execute("SELECT current_user, current_schema()")
    name = f"{user}_evil"
    names = {"evil": sql.Identifier(name), "schema": sql.Identifier(schema)}
    create = "CREATE SCHEMA {} AUTHORIZATION {}"
    admin.execute(sql.SQL(create).format(*map(sql.Identifier, (name, user))))
    producer.execute(sql.SQL("SET search_path = {evil}, {schema}").format(**names))
    producer.execute(sql.SQL(TRAPS).format(**names))
    yield name
    admin.execute("SET client_min_messages = warning")
    admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
    admin.execute("RESET client_min_messages")


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("first", [True, False], ids=["before pg_catalog", "after pg_catalog"])
def test_search_path_is_not_the_callers(
    producer: psycopg.Connection, conn: psycopg.Connection, evil: str, call: str, first: bool
) -> None:
    ((schema,),) = conn.execute("SELECT current_schema()")
    path = [evil, "pg_catalog"] if first else [evil]
    names = sql.SQL(", ").join(map(sql.Identifier, path))
    producer.execute(sql.SQL("SET search_path = {}").format(names))
    query = sql.SQL(call).format(schema=sql.Identifier(schema))
    producer.execute(query)
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (1,)
    seen = sql.SQL("SELECT * FROM {}.seen").format(sql.Identifier(evil))
    assert conn.execute(seen).fetchall() == []


@pytest.mark.parametrize("call", BOTH)
def test_temporary_tables_come_last(
    producer: psycopg.Connection, conn: psycopg.Connection, call: str
) -> None:
    ((schema,),) = conn.execute("SELECT current_schema()")
    producer.execute("CREATE TEMPORARY TABLE background_jobs (job_type text, data jsonb)")
    producer.execute("CREATE TEMPORARY SEQUENCE background_jobs_position_seq")
    producer.execute("CREATE TEMPORARY SEQUENCE background_jobs_id_seq")
    query = sql.SQL(call).format(schema=sql.Identifier(schema))
    producer.execute(query)
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (1,)


def nested(levels: int, kind: str = "[]") -> str:
    """An object of so many levels, itself included; wide enough to be looked at either way."""
    opening = '{"a":' if kind == "{}" else "["
    inside = opening * (levels - 2) + kind + kind[1] * (levels - 2)
    return '{"wide": [[],[],[]], "x": ' + inside + "}"


@pytest.mark.parametrize("deduplicated", [False, True])
@pytest.mark.parametrize("kind", ["[]", "{}"])
def test_depth(producer: psycopg.Connection, deduplicated: bool, kind: str) -> None:
    query = "SELECT workers_enqueue('mail', %s::jsonb, deduplicated => %s)"
    assert producer.execute(query, [nested(100, kind), deduplicated]).fetchone() != (None,)
    with pytest.raises(CheckViolation, match="deeper than 100 levels"):
        producer.execute(query, [nested(101, kind), deduplicated])
    wide = json.dumps({"x": [[]] * 300, "brackets": "[{" * 300})
    assert producer.execute(query, [wide, deduplicated]).fetchone() != (None,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no such name!", ["{}"], "q"), "job_type must be"),
        (("mail\n", ["{}"], "q"), "job_type must be"),
        (("é", ["{}"], "q"), "job_type must be"),
        ((None, ["{}"], "q"), "job_type must be"),
        (("mail", ["{}"], "no queue!"), "queue must be"),
        (("mail", ["{}", "[]"], "q"), "data must be a JSON object"),
        (("mail", ["{}", ' \n"{}"'], "q"), "data must be a JSON object"),
        (("mail", ["{}", None], "q"), "data must be a JSON object"),
        (("mail", ["{}", '{"x":"' + "x" * 1_048_576 + '"}'], "q"), "over 1 MiB"),
        (("mail", ["{}", nested(101)], "q"), "deeper than 100"),
    ],
)
def test_batches_are_checked(
    producer: psycopg.Connection,
    conn: psycopg.Connection,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    query = "SELECT workers_enqueue_deduplicated(%s, %s::text[], 0::smallint, %s, NULL)"
    with pytest.raises(CheckViolation, match=message):
        producer.execute(query, arguments)
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)


def test_a_priority_that_is_none(producer: psycopg.Connection) -> None:
    """Not: an identical one waits."""
    query = "SELECT workers_enqueue_deduplicated('mail', '{\"{}\"}', NULL, 'q', NULL)"
    with pytest.raises(CheckViolation, match="priority must be"):
        producer.execute(query)


def test_white_space_before_an_object(producer: psycopg.Connection) -> None:
    query = "SELECT workers_enqueue_deduplicated('mail', ARRAY[%s], 0::smallint, 'q', NULL)"
    assert producer.execute(query, [" \r\n\t{}"]).fetchone()
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        producer.execute(query, ["{broken"])


def test_a_schema_that_is_open_to_all_is_refused(
    users: Users, conn: psycopg.Connection, database_url: str
) -> None:
    """There the functions would find what anybody put beside them."""
    ((schema,),) = conn.execute("SELECT current_schema()")
    conn.execute(sql.SQL("GRANT CREATE ON SCHEMA {} TO PUBLIC").format(sql.Identifier(schema)))
    with pytest.raises(MigrationError, match=f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC"):
        apply_roles(database_url, users.prefix)


def test_what_a_producer_may_do_stays_in_its_transaction(
    producer: psycopg.Connection, conn: psycopg.Connection
) -> None:
    query = "SELECT workers_enqueue('mail', %s, deduplicated => true)"
    with producer.transaction(force_rollback=True):
        producer.execute(query, [Jsonb({"number": 1})])
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)


@pytest.mark.parametrize("as_sql", [False, True])
def test_what_the_migrator_puts_there_is_not_run_by_others(
    users: Users, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, as_sql: bool
) -> None:
    """Who repeats `workers migrate --roles` may be a superuser. It is no longer one who migrates."""
    with psycopg.connect(users.urls["migrator"]) as migrator:
        migrator.execute("CREATE TABLE seen (who text, what text)")
        for what, result in BETTER.items():
            given = ", ".join(f"${number + 1}" for number in range(what.count(",") + 1))
            note = f"INSERT INTO seen VALUES (current_user, '{what}')"
            same = f"SELECT pg_catalog.{what.partition('(')[0]}({given})"
            made = f"CREATE FUNCTION {what} RETURNS {result} LANGUAGE sql AS $$ {note}; {same} $$"
            migrator.execute(made.encode())
    ((path,),) = conn.execute("SELECT current_setting('search_path')")
    if as_sql:
        conn.execute(roles_sql(users.prefix).encode())
    else:
        with conn.transaction():
            assert migrate(conn) == []
            apply_roles(conn, users.prefix)
            assert conn.execute("SELECT current_setting('search_path')").fetchone() == (path,)
    # there is something to migrate, or a member of the migrator makes it seem so
    known = [*migrations._load(), Migration(2, "0002_second", b"CREATE TABLE later ()")]
    refused = pytest.raises(MigrationError, match=f"members of {users.prefix}_migrator could have")
    with monkeypatch.context() as patch, refused:
        patch.setattr(migrations, "_load", lambda: known)
        migrate(conn)
    with psycopg.connect(users.urls["migrator"]) as migrator:
        migrator.execute("ALTER TABLE workers_migrations RENAME TO hidden")
    with pytest.raises(MigrationError, match=f'GRANT "{users.prefix}_migrator" TO'):
        migrate(conn)
    assert conn.execute("SELECT * FROM seen").fetchall() == []


async def test_a_view_in_place_of_the_record_is_not_read_by_a_superuser(
    users: Users, conn: psycopg.Connection, database_url: str
) -> None:
    """Put there while he waits to read it: what it calls would run as him."""
    with (
        psycopg.connect(users.urls["migrator"]) as migrator,
        psycopg.connect(database_url, autocommit=True) as asking,
    ):
        migrator.execute("CREATE TABLE seen (who text)")
        note = "INSERT INTO seen VALUES (current_user); SELECT 1"
        migrator.execute(
            f"CREATE FUNCTION note() RETURNS integer LANGUAGE sql AS $$ {note} $$".encode()
        )
        migrator.commit()
        migrator.execute("LOCK TABLE workers_migrations IN ACCESS EXCLUSIVE MODE")
        migrating = asyncio.create_task(asyncio.to_thread(migrate, conn))
        blocked = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        while asking.execute(blocked, [conn.info.backend_pid]).fetchone() != (True,):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        migrator.execute("ALTER TABLE workers_migrations RENAME TO hidden")
        migrator.execute("CREATE VIEW workers_migrations AS SELECT note() AS version")
        migrator.commit()
        with pytest.raises(MigrationError, match="a superuser does not migrate here"):
            await migrating
    assert conn.execute("SELECT * FROM seen").fetchall() == []
