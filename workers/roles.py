"""Apply `migrations/roles.sql`: group roles with no more rights than they need, in the way `migrate` is called.

What the user lacks is found before anything is done, and told with what to do about it.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any, overload

import psycopg

from .config import check_name
from .errors import ConfigurationError, MigrationError
from .migrations import (
    BE_BRIEF,
    LOCK,
    LOCK_TABLES,
    SCHEMA_OID,
    SET_SEARCH_PATH,
    TABLE_EXISTS,
    Steps,
    Target,
    migration_file,
    run_steps,
)
from .storage.postgres.literals import text_array

__all__ = ["PREFIX", "apply_roles", "role_names", "roles_sql"]

PREFIX = "workers"
#: A role's name has 63 bytes, of which "_migrator" takes 9. PostgreSQL would cut it off, and two prefixes meet.
_LONGEST = 54
_ROLES = ("enqueue", "worker", "readonly", "migrator")

_SET_PREFIX = "SELECT set_config('workers.role_prefix', %s, true)"
_PLACE = "SELECT current_schema(), current_setting('search_path')"
#: Nothing is found any more that the migrator put into the schema: who asks may be a superuser. (roles.sql does the same.)
_NOTHING_ELSE = "pg_catalog, pg_temp"
#: The user, its power over roles, the roles that are missing, and whether it has, or can give itself, the migrator.
_USER = """
SELECT
    current_user, own.rolsuper OR own.rolcreaterole,
    ARRAY(SELECT name FROM unnest(%s::text[]) AS name WHERE to_regrole(quote_ident(name)) IS NULL),
    migrator.oid IS NULL
        OR pg_has_role(own.oid, migrator.oid, 'USAGE')
        OR pg_has_role(own.oid, migrator.oid, 'MEMBER WITH ADMIN OPTION')
        OR own.rolcreaterole AND current_setting('server_version_num')::int < 160000
FROM pg_roles AS own LEFT JOIN pg_roles AS migrator ON migrator.rolname = %s
WHERE own.rolname = current_user"""
#: The migrator of another prefix, to whom the tables belong.
_OTHER_MIGRATOR = """
SELECT tableowner FROM pg_tables
WHERE schemaname = %s
    AND tablename IN ('background_jobs', 'worker_sessions', 'worker_claims', 'dead_jobs', 'archived_jobs',
        'workers_migrations')
    AND tableowner <> %s AND right(tableowner, 9) = '_migrator'
ORDER BY tableowner LIMIT 1"""
#: Before the other tables, which jobs wait for.
_LOCK_RECORD = "LOCK TABLE workers_migrations IN ACCESS EXCLUSIVE MODE"
#: A change of owner takes them: see lock_tables.sql.
_SEQUENCES_TOO = "SELECT set_config('workers.lock_sequences', 'on', true)"
#: Whether the tables change hands.
_HANDED_OVER = """
SELECT 1 FROM pg_tables
WHERE schemaname = %s AND tablename = 'background_jobs' AND tableowner <> %s"""
#: Owners whose rights the user has not, and the table that shows it.
_OWNERS = """
SELECT DISTINCT ON (owner.rolname) owner.rolname, owned.name
FROM (
    SELECT relowner AS owner, relname AS name FROM pg_class
    WHERE relnamespace = %s::oid AND relkind = 'r'
        AND relname IN ('background_jobs', 'worker_sessions', 'worker_claims', 'dead_jobs', 'archived_jobs',
            'workers_migrations')
    UNION ALL
    SELECT proowner, proname FROM pg_proc
    WHERE pronamespace = %s::oid AND starts_with(proname, 'workers_')
    UNION ALL
    SELECT typowner, typname FROM pg_type
    WHERE typnamespace = %s::oid AND typname = 'workers_payload'
) AS owned
JOIN pg_roles AS owner ON owner.oid = owned.owner
WHERE NOT pg_has_role(current_user, owned.owner, 'USAGE')
ORDER BY owner.rolname, owned.name"""
#: Whether the schema is open to everybody; the roles that still need it, when the user can't let them in.
_SCHEMA = """
SELECT
    quote_ident(nspname), has_schema_privilege('public', oid, 'CREATE'),
    pg_has_role(current_user, nspowner, 'USAGE'),
    ARRAY(
        SELECT rolname FROM pg_roles
        WHERE rolname = ANY(%s::text[]) AND has_schema_privilege(pg_roles.oid, pg_namespace.oid, 'USAGE')
            AND (rolname <> %s OR has_schema_privilege(pg_roles.oid, pg_namespace.oid, 'CREATE'))
    )
FROM pg_namespace WHERE oid = %s::oid"""


@overload
def apply_roles(target: str | psycopg.Connection[Any], prefix: str = PREFIX) -> list[str]: ...
@overload
def apply_roles(
    target: psycopg.AsyncConnection[Any], prefix: str = PREFIX
) -> Coroutine[Any, Any, list[str]]: ...
def apply_roles(target: Target, prefix: str = PREFIX) -> list[str] | Coroutine[Any, Any, list[str]]:
    """Make the group roles PREFIX_enqueue, PREFIX_worker, PREFIX_readonly and PREFIX_migrator, and grant what they need.

    After `migrate`, and again after each newer version of it. `target` as there. The tables in its current schema become
    the migrator's, and whoever called this a member of that. Roles belong to the server: give databases that share one,
    and are to be kept apart, a prefix each. A schema has one prefix.

    Returns the names of the roles. Raises MigrationError, with what to do, where the user may not, the schema is not safe,
    or somebody's transaction uses the tables for long; ConfigurationError for a prefix that can't be one;
    UnsupportedConnectionError; psycopg.Error.
    """
    names = role_names(prefix)
    return run_steps(target, partial(_apply, prefix, names), "apply_roles")


def roles_sql(prefix: str = PREFIX) -> str:
    """Return the SQL of `apply_roles`, for a database that is managed by other tools.

    It does not take all tables before it changes the first, as that does: the first time, better with no runner at work.
    """
    role_names(prefix)
    setting = f"SELECT set_config('workers.role_prefix', '{prefix}', false);\n"
    return f"-- roles\n\n{setting}\n{migration_file('roles.sql').decode()}"


def role_names(prefix: str) -> list[str]:
    """The names of the four roles. Raises ConfigurationError."""
    check_name("the prefix of roles", prefix)
    if len(prefix) > _LONGEST:
        raise ConfigurationError(f"the prefix of roles is too long: at most {_LONGEST} characters")
    return [f"{prefix}_{role}" for role in _ROLES]


def _apply(prefix: str, names: list[str], own_transaction: bool) -> Steps[list[str]]:
    schema = yield SCHEMA_OID, None
    if schema:
        yield LOCK, schema[0]
    if not schema or not (yield TABLE_EXISTS, None):
        raise MigrationError("there are no tables to grant anything on: run `workers migrate`")
    ((name, search_path),) = yield _PLACE, None
    yield SET_SEARCH_PATH, (_NOTHING_ELSE,)
    yield from _look(prefix, names, name, *schema[0])
    handed_over = yield _HANDED_OVER, (name, names[-1])
    yield SET_SEARCH_PATH, (search_path,)
    if own_transaction:
        yield BE_BRIEF, None
    if handed_over:
        yield _LOCK_RECORD, None
        yield _SEQUENCES_TOO, None
        yield migration_file(LOCK_TABLES), None
    yield _SET_PREFIX, (prefix,)
    yield migration_file("roles.sql"), None
    return names


def _look(prefix: str, names: list[str], schema: str, oid: int) -> Steps[None]:
    """Raise MigrationError where something is in the way."""
    migrator = names[-1]
    found = yield _SCHEMA, (text_array(names), migrator, oid)
    if other := (yield _OTHER_MIGRATOR, (schema, migrator)):
        raise MigrationError(_one_prefix(other[0][0], prefix))
    _check_schema(names, *found[0])
    _check_user(names, *(yield _USER, (text_array(names), migrator))[0])
    owners = yield _OWNERS, (oid, oid, oid)
    if owners:
        owner, owned = owners[0]
        raise MigrationError(
            f"{owned} belongs to {owner}, and only its owner can grant rights on it: "
            f"run `workers migrate --roles` as {owner}, as a member of it, or as a superuser"
        )


def _one_prefix(owner: str, prefix: str) -> str:
    present = owner.removesuffix("_migrator")
    return (
        f"the tables in this schema belong to {owner}, which would lose them: one prefix per schema. "
        f"Run `workers migrate --roles {present}`, or use {prefix} in a schema or database of its own"
    )


def _check_schema(
    names: list[str], schema: str, open_: bool, ours: bool, inside: list[str]
) -> None:
    if open_:
        raise MigrationError(
            f"everybody may create objects in schema {schema}, and could have them run by the functions of `workers`: "
            f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC first"
        )
    if not ours and (outside := [name for name in names if name not in inside]):
        raise MigrationError(
            f"only the owner of schema {schema} can let {', '.join(outside)} use it: "
            "run `workers migrate --roles` as its owner or as a superuser"
        )


def _check_user(
    names: list[str], user: str, creates: bool, missing: list[str], migrates: bool
) -> None:
    if missing and not creates:
        raise MigrationError(
            f"{user} may not create roles, and there is no {', '.join(missing)}: let an administrator say "
            f'ALTER ROLE "{user}" CREATEROLE, or run `workers migrate --roles` once'
        )
    if not migrates:
        raise MigrationError(
            f"{user} is no member of {names[-1]}, which owns the tables: let an administrator say "
            f'GRANT "{names[-1]}" TO "{user}"'
        )
