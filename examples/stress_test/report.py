"""The table at the end, and the same as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from .options import Options
from .play import Result

__all__ = ["as_json", "print_report"]

TOTALS = ("enqueued", "deduplicated", "completed", "retried", "dead", "lost")
COLUMNS = (*TOTALS, "waiting", "rescued")


def as_json(result: Result) -> str:
    """Return the result as one object on one line."""
    whole: dict[str, Any] = {name: _total(result, name) for name in TOTALS}
    whole["per_second"] = _per_second(result)
    whole["queues"] = result.accounts.queues
    return msgspec.json.encode(whole).decode()


def print_report(console: Console, result: Result, options: Options) -> None:
    """Print the table and what it means."""
    table = Table(title=_title(result, options), title_justify="left")
    table.add_column("queue", no_wrap=True)
    for heading in (*COLUMNS, "jobs/s", "pick-up p50", "p99"):
        table.add_column(heading.replace("deduplicated", "dedup."), justify="right")
    for queue, account in result.accounts.queues.items():
        figures = [getattr(account, name) for name in COLUMNS]
        latencies = (account.pickup_p50_ms, account.pickup_p99_ms)
        table.add_row(queue, *map(str, figures), f"{account.per_second:.1f}", *map(_ms, latencies))
    table.add_section()
    totals = [str(_total(result, name)) for name in COLUMNS]
    table.add_row("all", *totals, f"{_per_second(result):.1f}", "", "", style="bold")
    console.print(table)
    for style, line in _verdict(result):
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _title(result: Result, options: Options) -> str:
    ended = f", ended by {result.ended_by}" if result.ended_by else ""
    return f"{result.seconds:.1f} s at --speed {options.speed:g}, --seed {options.seed}{ended}"


def _verdict(result: Result) -> list[tuple[str, str]]:
    accounts = result.accounts
    waiting = _total(result, "waiting")
    lines = []
    if waiting:
        lines.append(("", f"{waiting} jobs are still in the table, for whoever runs them next."))
    if accounts.lost:
        lines.append(("red", f"LOST: {len(accounts.lost)} jobs, {_some(accounts.lost)}"))
    if accounts.ghosts:
        lines.append(("red", f"RUN BUT NEVER COMMITTED: jobs {_some(accounts.ghosts)}"))
    if accounts.misjudged:
        lines.append(("red", f"NOT EXACTLY ONE BADGE: battles {_some(accounts.misjudged)}"))
    if result.failed:
        lines.append(("red", f"FAILED: {result.ended_by}"))
    if accounts.honest:
        killed = f", with {result.killed} runners killed" if result.killed else ""
        lines.append(("green", f"No job lost, each badge won exactly once{killed}."))
    return lines


def _total(result: Result, name: str) -> int:
    return sum(getattr(account, name) for account in result.accounts.queues.values())


def _per_second(result: Result) -> float:
    return round(_total(result, "completed") / result.seconds, 1)


def _ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.1f} s"


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (" ..." if len(ids) > 10 else "")
