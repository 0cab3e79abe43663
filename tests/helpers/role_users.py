"""Users of a server who have one of the library's roles each, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import psycopg
from psycopg import sql

from tests.helpers.server import connection_url
from workers import apply_roles

__all__ = ["ROLES", "Users", "dropped_roles", "limited_user", "login", "opened_users", "user_url"]

ROLES = ("enqueue", "worker", "readonly", "migrator")
_PASSWORD = "secret"
_OBJECTS = ("TABLES", "SEQUENCES", "FUNCTIONS")
_numbers = count(1)


class Users(NamedTuple):
    """`prefix` of the roles; by role, the URL as which its user connects."""

    prefix: str
    urls: dict[str, str]

    def group(self, role: str) -> str:
        return f"{self.prefix}_{role}"


def user_url(url: str, name: str) -> str:
    """`url` for another user."""
    return connection_url(url, user=name, password=_PASSWORD)


def login(admin: psycopg.Connection, name: str, *groups: str, rights: str = "") -> None:
    """Create a user `name` in `groups`."""
    query = f"CREATE ROLE {{}} LOGIN PASSWORD '{_PASSWORD}' {rights}"
    admin.execute(sql.SQL(query).format(sql.Identifier(name)))
    for group in groups:
        admin.execute(sql.SQL("GRANT {} TO {}").format(*map(sql.Identifier, (group, name))))


@contextlib.contextmanager
def dropped_roles(admin: psycopg.Connection) -> Iterator[str]:
    """A prefix of names; every role whose name begins with it is dropped afterwards, with what it owns."""
    prefix = f"t{os.getpid()}_{next(_numbers)}"
    try:
        yield prefix
    finally:
        found = admin.execute(
            "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [f"{prefix}_"]
        ).fetchall()
        admin.execute("SET client_min_messages = warning")
        for verb in ("DROP OWNED BY {} CASCADE", "DROP ROLE {}"):
            for (name,) in found:
                admin.execute(sql.SQL(verb).format(sql.Identifier(name)))
        admin.execute("RESET client_min_messages")


@contextlib.contextmanager
def opened_users(admin: psycopg.Connection, url: str) -> Iterator[Users]:
    """The roles, applied to the schema of `url`, and a user of each."""
    with dropped_roles(admin) as prefix:
        apply_roles(url, prefix)
        for role in ROLES:
            login(admin, f"{prefix}_the_{role}", f"{prefix}_{role}")
        yield Users(prefix, {role: user_url(url, f"{prefix}_the_{role}") for role in ROLES})


@contextlib.contextmanager
def limited_user(conn: psycopg.Connection, url: str, limit: int) -> Iterator[str]:
    """The URL of a user with all rights in the schema of `conn` and `url`, and no more than `limit` connections."""
    ((schema,),) = conn.execute("SELECT current_schema()").fetchall()
    with dropped_roles(conn) as prefix:
        name = f"{prefix}_limited"
        login(conn, name, rights=f"CONNECTION LIMIT {limit}")
        for what in ("SCHEMA {}", *(f"ALL {each} IN SCHEMA {{}}" for each in _OBJECTS)):
            grant = sql.SQL("GRANT ALL ON " + what + " TO {}")
            conn.execute(grant.format(sql.Identifier(schema), sql.Identifier(name)))
        yield user_url(url, name)
