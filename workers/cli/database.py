"""`--database-url`: from what the user gives to a connection, without a word of it in any message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..dsn import EMBEDDED, read_dsn
from ..embedded import require_path, resolve_dsn
from ..hiding import without_passwords

__all__ = ["connect", "database_option", "require", "resolve"]

F = TypeVar("F", bound=Callable[..., Any])

VARIABLE = "DATABASE_URL"
_CONNECT_SECONDS = 10


def database_option(text: str) -> Callable[[F], F]:
    """The option; `text` says what this command does with it."""
    return click.option(
        "--database-url",
        metavar="URL",
        envvar=VARIABLE,
        show_envvar=True,
        help=f"{text} A libpq URL or connection string, or embedded:PATH for a server of our own with its data in "
        "PATH; started by root, it runs as the user pgserver, and a directory above PATH that this user can't pass "
        "through gets execute permission, with a warning. Others can see a command line: a password is safer in the "
        "environment.",
    )


def require(url: str | None, *, create: bool = True) -> str:
    """The DSN that `url` means, as in `resolve`, for a command that ends at once: a temporary database is no use to it."""
    if not url:
        raise click.UsageError(f"which database? Give --database-url or set {VARIABLE}.")
    require_path(url)
    return resolve(url, create=create)


def resolve(url: str, *, create: bool = True) -> str:
    """The DSN that `url` means; starts the embedded server, and with `create` makes its database where there is none.

    Raises ConfigurationError for what is no URL of a database.
    """
    return resolve_dsn(url, create=create) if url.startswith(EMBEDDED) else read_dsn(url)


def connect(dsn: str) -> psycopg.Connection[Any]:
    """A connection in autocommit mode. Raises ClickException, soon, when there is none to be had."""
    given = conninfo_to_dict(dsn)
    if not given.get("connect_timeout"):
        dsn = make_conninfo(dsn, connect_timeout=_CONNECT_SECONDS)
    try:
        return psycopg.connect(dsn, autocommit=True)
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        for name in ("password", "sslpassword"):
            if secret := given.get(name):
                text = text.replace(str(secret), "***")
        raise click.ClickException(
            f"no connection to the database: {without_passwords(text)}"
        ) from error
