"""`workers stats`: what waits, runs and failed, per queue."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import timedelta

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..job import printable
from ..migrations import newer_tables
from ..storage import open_storage
from ..storage.base import QueueStats
from .command import Command
from .database import connect, database_option, require

__all__ = ["stats"]

_COUNTS = ("available", "running", "scheduled", "retryable", "dead", "archived")
#: Shown for jobs that no runner has filed under their declared queue yet.
_NOT_FILED = "(not filed yet)"


@click.command(cls=Command)
@database_option("Where to look.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on one line.")
def stats(database_url: str | None, as_json: bool) -> None:
    """Count the jobs of each queue by state.

    \b
    available  could run now; OLDEST is how long ago the first of them was enqueued
    running    claimed by a runner
    scheduled  wait for their time, or for a runner once that has come
    retryable  failed, and wait for their next attempt
    dead       used up their attempts or crashes, or were discarded; kept for a human
    archived   finished, or cancelled, and kept

    --json gives {"queues": {NAME: COUNTS, ...}, "total": COUNTS}; COUNTS has these words, and "oldest" in seconds,
    as keys. Jobs that no runner has filed under a queue yet have the name "".

    \b
    Examples:
      workers stats
      workers stats --json | jq .total.dead
    """
    dsn = require(database_url, create=False)
    with connect(dsn) as conn:
        newer = newer_tables(conn)
    if newer:  # as while a new version is rolled out, when the counts are wanted most
        click.echo(f"Warning: {newer}", err=True)
    rows = asyncio.run(_read(dsn))
    if as_json:
        queues = {row.queue: _as_dict(row) for row in rows}
        click.echo(json.dumps({"queues": queues, "total": _as_dict(_total(rows))}))
    else:
        # a pipe has no width that anything would have to be cut to
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(_table(rows) if rows else "There are no jobs.")


async def _read(dsn: str) -> list[QueueStats]:
    async with open_storage(dsn) as storage:
        return await storage.stats()


def _total(rows: Sequence[QueueStats]) -> QueueStats:
    counts = {name: sum(getattr(row, name) for row in rows) for name in _COUNTS}
    return QueueStats(
        queue="total", oldest=max((row.oldest for row in rows), default=0.0), **counts
    )


def _as_dict(row: QueueStats) -> dict[str, int | float]:
    fields = msgspec.structs.asdict(row)
    del fields["queue"]
    return fields


def _table(rows: Sequence[QueueStats]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_footer=len(rows) > 1, collapse_padding=True, pad_edge=False)
    total = _cells(_total(rows))
    table.add_column("queue", footer="total", overflow="fold")
    for name, footer in zip(("available", "oldest", *_COUNTS[1:]), total, strict=True):
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(printable(row.queue)) if row.queue else _NOT_FILED, *_cells(row))
    return table


def _cells(row: QueueStats) -> list[str]:
    counts = [str(getattr(row, name)) for name in _COUNTS]
    age = str(timedelta(seconds=round(row.oldest))) if row.available else ""
    return [counts[0], age, *counts[1:]]
