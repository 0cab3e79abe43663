"""`workers migrate`: make or update the tables."""

from __future__ import annotations

import click

from .. import migrations, roles
from ..dsn import EMBEDDED
from .command import Command
from .database import connect, database_option, require

__all__ = ["migrate"]


@click.command(cls=Command)
@database_option("Where to apply them.")
@click.option("--sql", is_flag=True, help="Print the SQL instead; needs no database.")
@click.option(
    "--roles",
    "prefix",
    metavar="[PREFIX]",
    is_flag=False,
    flag_value=roles.PREFIX,
    help="Then make group roles with no more rights than they need, or renew their rights. Their names begin with "
    f"PREFIX, by default {roles.PREFIX}.",
)
def migrate(database_url: str | None, sql: bool, prefix: str | None) -> None:
    """Make the tables, or bring them to this version.

    Everything happens in one transaction and in the first schema of the search path. Safe to repeat and to start from
    many machines at once: one applies, the others wait and find nothing to do.

    \b
    Examples:
      workers migrate --database-url postgresql://localhost/shop
      workers migrate --sql > jobs.sql    for tools that apply SQL themselves, once, in one transaction
      workers migrate --roles             make the roles, too; again after each upgrade, as a member of the migrator

    \b
    --roles makes four roles that nobody can log in as. Grant one to each user:
      GRANT workers_enqueue TO web_app     may enqueue, and read nothing
      GRANT workers_worker TO job_runner   may run jobs: `workers run`
      GRANT workers_readonly TO dashboard  may look: `workers stats`
      GRANT workers_migrator TO deploy     owns the tables: `workers migrate`
    It takes the owner of the tables and of their schema, with CREATEROLE the first time. The tables become
    workers_migrator's, and who ran it a member of that. With another PREFIX the names begin with that.
    """
    if sql:
        click.echo(migrations.migrations_sql(), nl=False)
        if prefix is not None:
            click.echo("\n" + roles.roles_sql(prefix), nl=False)
        return
    if prefix is not None:
        roles.role_names(prefix)  # before anything is done
        if (database_url or "").startswith(EMBEDDED):
            raise click.UsageError("an embedded database has one user: roles are of no use there")
    with connect(require(database_url)) as conn:
        applied = migrations.migrate(conn)
        for name in applied:
            click.echo(f"applied {name}")
        if not applied:
            click.echo("nothing to do: the tables are up to date")
        if prefix is not None:
            made = ", ".join(roles.apply_roles(conn, prefix))
            click.echo(f"rights are up to date: grant one of {made} to each user")
