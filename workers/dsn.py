"""From what users call the URL of their database to a DSN that libpq understands.

No message here quotes what was given, for it may hold a password. libpq's own messages do.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from .errors import ConfigurationError

__all__ = ["EMBEDDED", "read_dsn"]

#: What begins the URL of a server that `workers.embedded` starts.
EMBEDDED = "embedded:"

_SCHEME = re.compile(r"([a-z][a-z0-9.-]*)(?:\+\w+)?://", re.IGNORECASE)
_OURS = ("postgres", "postgresql")
_FORM = "postgresql://user:password@host:5432/database"
_HOW = (
    f"It should look like {_FORM}; "
    "in a password, @ : / ? % are written as %40 %3A %2F %3F %25, and parameters after ? are libpq's, such as sslmode"
)


def read_dsn(url: object) -> str:
    """The DSN that `url`, a URL or a connection string, means; SQLAlchemy's names of drivers are taken out.

    Raises ConfigurationError, without a word of the URL, for what is none.
    """
    if url is None or url == "":
        raise ConfigurationError(
            f"the database URL is {'None' if url is None else 'empty'}: is DATABASE_URL set?"
        )
    if not isinstance(url, str):
        raise ConfigurationError(f"the database URL is a {type(url).__name__}: give it as a string")
    dsn = url.strip()
    if dsn.startswith(EMBEDDED):
        raise ConfigurationError(
            "embedded: URLs are for the command line, as nothing would stop the server here: use "
            "`with workers.embedded.embedded(PATH) as server` and give server.dsn"
        )
    if scheme := _SCHEME.match(dsn):
        if (name := scheme[1]) not in _OURS:
            raise ConfigurationError(
                f"the database URL is one for {name}, but jobs are kept in PostgreSQL: {_FORM}"
            )
        dsn = f"{name}://{dsn[scheme.end() :]}"
    given = _parsed(dsn)
    if given is None:
        raise ConfigurationError(f"the database URL can't be read. {_HOW}")
    if _is_misread(dsn, given):
        raise ConfigurationError(f"the database URL can't be read as it is meant. {_HOW}")
    return dsn


def _parsed(dsn: str) -> dict[str, Any] | None:
    try:
        return conninfo_to_dict(dsn)
    except (psycopg.Error, UnicodeError):
        return None  # whoever raises while this is handled takes its text along


def _is_misread(dsn: str, given: dict[str, Any]) -> bool:
    """Whether libpq takes a part of a password for a host, a port or a database."""
    return (
        "@" in str(given.get("host", ""))
        or re.search(r"[^\d,]", str(given.get("port", ""))) is not None
        or re.match(r"\w+://[^/?]*/[^?]*@", dsn) is not None
    )
