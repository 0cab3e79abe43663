"""`workers migrate`: make or update the tables."""

from __future__ import annotations

import click

from .. import migrations
from .command import Command
from .database import connect, database_option, require

__all__ = ["migrate"]


@click.command(cls=Command)
@database_option("Where to apply them.")
@click.option("--sql", is_flag=True, help="Print the SQL instead; needs no database.")
def migrate(database_url: str | None, sql: bool) -> None:
    """Make the tables, or bring them to this version.

    Everything happens in one transaction and in the first schema of the search path. Safe to repeat and to start from
    many machines at once: one applies, the others wait and find nothing to do.

    \b
    Examples:
      workers migrate --database-url postgresql://localhost/shop
      workers migrate --sql > jobs.sql    for tools that apply SQL themselves
    """
    if sql:
        click.echo(migrations.migrations_sql(), nl=False)
        return
    with connect(require(database_url)) as conn:
        applied = migrations.migrate(conn)
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to do: the tables are up to date")
