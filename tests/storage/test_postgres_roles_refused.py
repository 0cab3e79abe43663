"""What only the owner may, and what none of the roles may: tried as each of them, statement by statement."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from tests.helpers.role_users import ROLES, Users
from workers import BackgroundJob, Secret

OTHERS = ("enqueue", "worker", "readonly")
#: Not in a transaction.
ALONE = ("ALTER SYSTEM", "CREATE DATABASE", "CREATE TABLESPACE", "DROP DATABASE")


def attempt(
    connection: psycopg.Connection, statement: LiteralString, **names: sql.Composable
) -> None:
    """Execute it, in autocommit, and leave nothing behind where that can be."""
    alone = statement.startswith(ALONE)
    with contextlib.nullcontext() if alone else connection.transaction(force_rollback=True):
        connection.execute(sql.SQL(statement).format(**names))


# ---------------------------------------------------------------------------------------------------------- the owner's


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER DOMAIN workers_payload DROP CONSTRAINT workers_payload_size",
        "ALTER FUNCTION workers_enqueue RESET ALL",
        "ALTER FUNCTION workers_enqueue SECURITY INVOKER",
        "ALTER INDEX background_jobs_fetch RENAME TO mine",
        "ALTER SEQUENCE background_jobs_id_seq RESTART",
        "ALTER TABLE background_jobs ADD COLUMN more text",
        "ALTER TABLE background_jobs DISABLE TRIGGER ALL",
        "ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE background_jobs OWNER TO CURRENT_USER",
        "ALTER TABLE background_jobs SET UNLOGGED",
        "ALTER TABLE dead_jobs DROP COLUMN reason",
        "CLUSTER background_jobs USING background_jobs_pkey",
        "COMMENT ON TABLE background_jobs IS 'mine'",
        "CREATE FUNCTION workers_notify(text, text, text) RETURNS void LANGUAGE sql AS ''",
        "CREATE INDEX ON background_jobs (id)",
        "CREATE OR REPLACE FUNCTION workers_channel() RETURNS text LANGUAGE sql AS 'SELECT NULL::text'",
        "CREATE POLICY mine ON background_jobs",
        "CREATE RULE mine AS ON INSERT TO background_jobs DO INSTEAD NOTHING",
        "CREATE SEQUENCE mine",
        "CREATE STATISTICS mine ON id, queue FROM background_jobs",
        "CREATE TABLE mine ()",
        "CREATE TABLE mine (LIKE background_jobs)",
        "CREATE TRIGGER mine AFTER INSERT ON background_jobs EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TYPE mine AS (number integer)",
        "CREATE VIEW mine AS SELECT id FROM background_jobs",
        "DROP FUNCTION workers_complete",
        "DROP INDEX background_jobs_fetch",
        "DROP TABLE background_jobs",
        "INSERT INTO workers_migrations VALUES (9, 'mine')",
        "UPDATE workers_migrations SET version = 9",
        "DELETE FROM workers_migrations",
        "DELETE FROM archived_jobs",
        "REINDEX TABLE background_jobs",
        "SELECT setval('background_jobs_id_seq', 1)",
        "SELECT setval('background_jobs_position_seq', 1)",
        "SELECT setval('worker_sessions_id_seq', 1)",
        "SELECT last_value FROM worker_sessions_id_seq",
        "SELECT workers_check_jobs('mail', 'default', '{{}}')",
        "TRUNCATE archived_jobs",
        "TRUNCATE background_jobs",
        "TRUNCATE dead_jobs",
        "TRUNCATE worker_claims",
        "TRUNCATE worker_sessions",
        "TRUNCATE workers_migrations",
    ],
)
def test_only_the_migrator_may(users: Users, statement: LiteralString) -> None:
    for role in OTHERS:
        with (
            psycopg.connect(users.urls[role], autocommit=True) as connection,
            pytest.raises(InsufficientPrivilege),
        ):
            attempt(connection, statement)
    with psycopg.connect(users.urls["migrator"], autocommit=True) as connection:
        attempt(connection, statement)


def test_nobody_hands_on_what_it_has(users: Users, conn: psycopg.Connection) -> None:
    """PostgreSQL refuses that, or says in a warning that it has granted nothing."""
    before = granted(conn)
    for role in OTHERS:
        with psycopg.connect(users.urls[role], autocommit=True) as connection:
            ((schema,),) = connection.execute("SELECT current_schema()")
            for what in (
                "SELECT, INSERT ON background_jobs",
                "INSERT (job_type, data, priority, queue, run_at) ON background_jobs",
                "SELECT ON dead_jobs",
                "USAGE ON SEQUENCE background_jobs_id_seq",
                "EXECUTE ON FUNCTION workers_enqueue",
                "USAGE ON TYPE workers_payload",
                f"USAGE ON SCHEMA {schema}",
            ):
                with contextlib.suppress(InsufficientPrivilege):
                    connection.execute(f"GRANT {what} TO PUBLIC".encode())
    assert granted(conn) == before


def granted(conn: psycopg.Connection) -> list[tuple[object, ...]]:
    """Every right on everything in the schema, and on itself."""
    return conn.execute(
        """
        WITH place AS (SELECT oid, nspacl FROM pg_namespace WHERE nspname = current_schema())
        SELECT nspacl::text, 'schema' FROM place
        UNION ALL SELECT relacl::text, relname FROM pg_class JOIN place ON place.oid = relnamespace
        UNION ALL SELECT attacl::text, relname || '.' || attname
            FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN place ON place.oid = relnamespace
        UNION ALL SELECT proacl::text, proname FROM pg_proc JOIN place ON place.oid = pronamespace
        UNION ALL SELECT typacl::text, typname FROM pg_type JOIN place ON place.oid = typnamespace
        ORDER BY 2, 1
        """
    ).fetchall()


@pytest.mark.parametrize("role", ROLES)
def test_nobody_becomes_another(users: Users, role: str) -> None:
    with psycopg.connect(users.urls[role], autocommit=True) as connection:
        attempt(connection, "SET ROLE {group}", group=sql.Identifier(users.group(role)))
        for other in ROLES:
            group = sql.Identifier(users.group(other))
            with pytest.raises(InsufficientPrivilege):
                attempt(connection, "GRANT {group} TO CURRENT_USER", group=group)
            if other == role:
                continue
            member = sql.Identifier(f"{users.prefix}_the_{other}")
            for statement in (
                "SET ROLE {group}",
                "SET SESSION AUTHORIZATION {group}",
                "SET ROLE {member}",
                "GRANT {group} TO {member}",
                "REVOKE {group} FROM {member}",
                "ALTER ROLE {group} LOGIN PASSWORD 'mine'",
                "ALTER ROLE {member} PASSWORD 'mine'",
                "ALTER ROLE {member} SET search_path = mine",
                "DROP OWNED BY {group}",
                "REASSIGN OWNED BY {group} TO CURRENT_USER",
                "DROP ROLE {member}",
            ):
                with pytest.raises(InsufficientPrivilege):
                    attempt(connection, statement, group=group, member=member)


# -------------------------------------------------------------------------------------------------------- nobody's here


@pytest.fixture
def names(users: Users, conn: psycopg.Connection) -> Iterator[dict[str, sql.Composable]]:
    """What belongs to others: `owner`, who has applied the roles, the schema, the database, another schema, a backend."""
    ((owner, schema, database, pid),) = conn.execute(
        "SELECT current_user, current_schema(), current_database(), pg_backend_pid()"
    )
    found = {"owner": owner, "schema": schema, "database": database}
    found["elsewhere"] = f"{users.prefix}_elsewhere"
    quoted: dict[str, sql.Composable] = {key: sql.Identifier(name) for key, name in found.items()}
    create = """
        CREATE SCHEMA {elsewhere};
        GRANT USAGE ON SCHEMA {elsewhere} TO PUBLIC;
        CREATE TABLE {elsewhere}.secrets (id serial, secret text);
        INSERT INTO {elsewhere}.secrets (secret) VALUES ('k3y');
        CREATE FUNCTION {elsewhere}.work() RETURNS integer LANGUAGE sql AS 'SELECT 1';
        REVOKE EXECUTE ON FUNCTION {elsewhere}.work() FROM PUBLIC
    """
    conn.execute(sql.SQL(create).format(**quoted))
    yield quoted | {"pid": sql.Literal(pid)}
    conn.execute("SET client_min_messages = warning")
    conn.execute(sql.SQL("DROP SCHEMA {elsewhere} CASCADE").format(**quoted))


@pytest.mark.parametrize(
    "statement",
    [
        # other data
        "SELECT secret FROM {elsewhere}.secrets",
        "SELECT FROM {elsewhere}.secrets",
        "INSERT INTO {elsewhere}.secrets (secret) VALUES ('mine')",
        "UPDATE {elsewhere}.secrets SET secret = 'mine'",
        "DELETE FROM {elsewhere}.secrets",
        "TRUNCATE {elsewhere}.secrets",
        "LOCK TABLE {elsewhere}.secrets IN ACCESS SHARE MODE",
        "COPY {elsewhere}.secrets TO STDOUT",
        "SELECT nextval('{elsewhere}.secrets_id_seq')",
        "SELECT {elsewhere}.work()",
        # other schemas, and what is in them
        "ALTER TABLE {elsewhere}.secrets ADD more text",
        "ALTER FUNCTION {elsewhere}.work() OWNER TO CURRENT_USER",
        "CREATE INDEX ON {elsewhere}.secrets (id)",
        "CREATE OR REPLACE FUNCTION {elsewhere}.work() RETURNS integer LANGUAGE sql AS 'SELECT 2'",
        "CREATE TABLE {elsewhere}.mine ()",
        "DROP TABLE {elsewhere}.secrets",
        "GRANT SELECT ON {elsewhere}.secrets TO CURRENT_USER",
        "ALTER SCHEMA {elsewhere} RENAME TO mine",
        "DROP SCHEMA {elsewhere} CASCADE",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION pg_catalog.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "UPDATE pg_class SET relowner = 10 WHERE relname = 'secrets'",
        # its own schema, which is the migrator's neither
        "ALTER SCHEMA {schema} RENAME TO mine",
        "ALTER SCHEMA {schema} OWNER TO CURRENT_USER",
        "DROP SCHEMA {schema} CASCADE",
        # roles
        "CREATE ROLE mine",
        "CREATE ROLE mine SUPERUSER",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "ALTER ROLE CURRENT_USER CREATEROLE",
        "ALTER ROLE CURRENT_USER BYPASSRLS",
        "ALTER ROLE {owner} PASSWORD 'mine'",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT ON TABLES TO PUBLIC",
        "DROP OWNED BY {owner}",
        "DROP ROLE {owner}",
        "GRANT pg_execute_server_program TO CURRENT_USER",
        "GRANT pg_read_all_data TO CURRENT_USER",
        "REASSIGN OWNED BY {owner} TO CURRENT_USER",
        "SELECT rolpassword FROM pg_authid",
        "SET ROLE {owner}",
        "SET SESSION AUTHORIZATION {owner}",
        "SET ROLE pg_read_server_files",
        # the database and the server
        "ALTER DATABASE {database} OWNER TO CURRENT_USER",
        "ALTER DATABASE {database} SET workers.notify = 'off'",
        "ALTER SYSTEM SET work_mem = '5MB'",
        "CHECKPOINT",
        "CREATE DATABASE mine",
        "CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE PUBLICATION mine FOR TABLE background_jobs",
        "CREATE TABLESPACE mine LOCATION '/nowhere'",
        "DROP DATABASE template1",
        "SELECT pg_cancel_backend({pid})",
        "SELECT pg_terminate_backend({pid})",
        "SELECT pg_create_physical_replication_slot('mine')",
        "SELECT pg_create_restore_point('mine')",
        "SELECT pg_reload_conf()",
        "SELECT pg_rotate_logfile()",
        "SELECT pg_switch_wal()",
        "SET log_statement = 'none'",
        "SET session_replication_role = replica",
        # its files and programs
        "COPY (SELECT 1) TO '/tmp/mine'",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY background_jobs (job_type, data) FROM '/etc/hostname'",
        "COPY background_jobs (job_type, data) FROM PROGRAM 'true'",
        "CREATE FOREIGN DATA WRAPPER mine",
        "CREATE FUNCTION mine() RETURNS integer LANGUAGE c AS 'libc', 'getpid'",
        "CREATE FUNCTION mine() RETURNS boolean LANGUAGE internal AS 'pg_reload_conf'",
        "CREATE LANGUAGE mine HANDLER plpgsql_call_handler",
        "LOAD '/nowhere'",
        "SELECT * FROM pg_hba_file_rules",
        "SELECT current_setting('data_directory')",
        "SELECT lo_export(1, '/tmp/mine')",
        "SELECT lo_import('/etc/hostname')",
        "SELECT pg_ls_dir('.')",
        "SELECT pg_read_binary_file('PG_VERSION')",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT pg_stat_file('PG_VERSION')",
    ],
)
def test_none_of_them_may(
    users: Users, names: dict[str, sql.Composable], statement: LiteralString
) -> None:
    for role in ROLES:
        with (
            psycopg.connect(users.urls[role], autocommit=True) as connection,
            pytest.raises(InsufficientPrivilege),
        ):
            attempt(connection, statement, **names)


# ------------------------------------------------------------------------------------------------- what can be overheard


@pytest.mark.parametrize("role", ROLES)
def test_nobody_sees_what_others_say(
    users: Users, names: dict[str, sql.Composable], role: str
) -> None:
    look = sql.SQL("SELECT query FROM pg_stat_activity WHERE pid = {pid}").format(**names)
    with psycopg.connect(users.urls[role]) as connection:
        assert connection.execute(look).fetchall() == [("<insufficient privilege>",)]


def test_a_producer_learns_nothing_from_statistics(
    producer: psycopg.Connection, conn: psycopg.Connection
) -> None:
    """The most common values of a column are in a view that everybody may read."""
    conn.execute(
        "INSERT INTO background_jobs (job_type, data, queue) SELECT 'mail', '{}', 'vip' FROM generate_series(1, 20)"
    )
    conn.execute("ANALYZE background_jobs")
    query = "SELECT most_common_vals::text FROM pg_stats WHERE schemaname = current_schema() AND attname = 'queue'"
    assert conn.execute(query).fetchall() == [("{vip}",)]
    assert producer.execute(query).fetchall() == []


class Reset(BackgroundJob[None]):
    queue = "vip"
    deduplicated = True

    token: Secret[str]

    async def run(self, ctx: None) -> None:
        pass


@pytest.mark.parametrize("role", ROLES)
def test_a_listener_hears_no_payload(users: Users, conn: psycopg.Connection, role: str) -> None:
    """To listen is everybody's right: where a job waits, at which priority and in which queue is all there is to hear."""
    ((channel,),) = conn.execute("SELECT workers_channel()")
    with psycopg.connect(users.urls[role], autocommit=True) as connection:
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        Reset(token="k3y").enqueue(conn)
        Reset(token="k3y").enqueue(conn)
        conn.execute("SELECT workers_enqueue('reset', '{\"token\": \"k3y\"}', 'vip')")
        heard = [notice.payload for notice in connection.notifies(timeout=20, stop_after=3)]
    assert heard == ["1 0 vip", "1 0 vip", "3 0 vip"]
