"""Django inside the test process, on the database of one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg.conninfo import conninfo_to_dict

__all__ = ["django_database"]


@contextmanager
def django_database(url: str, **options: Any) -> Iterator[Any]:
    """Django with `url` as its default database."""
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(DATABASES={}, USE_TZ=True)
        django.setup()
    from django.db import connection, connections
    from django.db.utils import ConnectionHandler

    given = {key: str(value) for key, value in conninfo_to_dict(url).items()}
    default = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": given.pop("dbname"),
        "USER": given.pop("user", ""),
        "PASSWORD": given.pop("password", ""),
        "HOST": given.pop("host", ""),
        "PORT": given.pop("port", ""),
        "OPTIONS": given | options,
    }
    connections.settings["default"] = ConnectionHandler({"default": default}).settings["default"]
    yield connection
    connection.close()
    del connections["default"]
