"""The table at the end, and the same as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from .options import Options
from .play import Result

__all__ = ["as_json", "print_report"]

TOTALS = ("enqueued", "deduplicated", "completed", "retried", "dead", "lost")
ROWS = (*TOTALS, "waiting", "rescued")


def as_json(result: Result) -> str:
    """Return the result as one object on one line."""
    whole: dict[str, Any] = {name: _total(result, name) for name in TOTALS}
    whole["per_second"] = _per_second(result)
    whole["queues"] = result.accounts.queues
    return msgspec.json.encode(whole).decode()


def print_report(console: Console, result: Result, options: Options) -> None:
    """Print the table, which fits 80 columns, and what it means."""
    queues = result.accounts.queues
    table = Table(title=_title(result, options), title_justify="left", box=SIMPLE, padding=0)
    for heading in ("", *queues, "all"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name in ROWS:
        figures = [getattr(account, name) for account in queues.values()]
        table.add_row(name, *map(str, figures), str(sum(figures)), style=_style(name, sum(figures)))
    rates = [account.per_second for account in queues.values()]
    table.add_row("jobs/s", *map(str, rates), str(_per_second(result)))
    table.add_row("pick-up p50", *(_ms(account.pickup_p50_ms) for account in queues.values()))
    table.add_row("pick-up p99", *(_ms(account.pickup_p99_ms) for account in queues.values()))
    console.print(table)
    for style, line in _verdict(result, kept=options.database_url is not None):
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _style(name: str, total: int) -> str:
    if name == "lost":
        return "bold red" if total else "bold green"
    return ""


def _title(result: Result, options: Options) -> str:
    ended = f", ended by {result.ended_by}" if result.ended_by else ""
    return f"{result.seconds:.1f} s at --speed {options.speed:g}, --seed {options.seed}{ended}"


def _verdict(result: Result, *, kept: bool) -> list[tuple[str, str]]:
    """What to say below the table; `kept`: the database is still there afterwards."""
    accounts = result.accounts
    waiting = _total(result, "waiting")
    lines = []
    if waiting:
        then = "are still in the table, for whoever runs them next" if kept else "were not run"
        lines.append(("", f"{waiting} jobs {then}."))
    if accounts.lost:
        lines.append(("red", f"LOST: {len(accounts.lost)} jobs, {_some(accounts.lost)}"))
    if accounts.ghosts:
        lines.append(("red", f"RUN BUT NEVER COMMITTED: jobs {_some(accounts.ghosts)}"))
    if accounts.misjudged:
        lines.append(("red", f"NOT EXACTLY ONE BADGE: battles {_some(accounts.misjudged)}"))
    if result.failed:
        lines.append(("red", f"FAILED: {result.ended_by}"))
    if accounts.honest:
        plural = "s" if result.killed > 1 else ""
        killed = f", {result.killed} runner{plural} killed" if result.killed else ""
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
