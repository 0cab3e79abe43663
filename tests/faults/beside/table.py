"""The table in docs/reliability.md."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tests.faults.beside.kinds import KINDS
from tests.faults.beside.trial import GOOD_JOBS, Outcome

__all__ = ["story", "write"]

DOCUMENT = Path(__file__).parents[3] / "docs" / "reliability.md"
BEGIN, END = "<!-- beside: begin -->", "<!-- beside: end -->"


def write(outcomes: list[Outcome], not_run: dict[str, str]) -> None:
    """Put it into the document, between its marks."""
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(_lines(outcomes, not_run))
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", "utf-8")


def _lines(outcomes: list[Outcome], not_run: dict[str, str]) -> list[str]:
    lines = [
        "| library | survived | can't be written | what stopped it, and how |",
        "|---|---|---|---|",
    ]
    for name, grouped in groupby(outcomes, key=lambda outcome: outcome.library):
        group = list(grouped)
        stopped = [
            f"**{KINDS[outcome.kind].label}**: {story(outcome)}"
            for outcome in group
            if outcome.verdict in ("stopped", "restarted")
        ]
        cells = [
            f"{name} {group[0].version}",
            _labels(group, "survived"),
            _labels(group, "can't be written"),
            "<br>".join(stopped) or "nothing",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | not run: {why} | | |" for name, why in not_run.items()]
    return lines


def _labels(outcomes: list[Outcome], verdict: str) -> str:
    labels = [KINDS[outcome.kind].label for outcome in outcomes if outcome.verdict == verdict]
    return f"{len(labels)}: {'; '.join(labels)}" if labels else "none"


def story(outcome: Outcome) -> str:
    """How it stopped, in words, and the last line of its error."""
    if outcome.exits:
        text = f"its process ended after {outcome.good_at_first_exit} good jobs"
        if outcome.verdict == "restarted":
            text += f"; ended {outcome.exits}x in all, it ran the rest"
        else:
            text += f"; ended {outcome.exits}x in all, it had run {outcome.good} of {GOOD_JOBS}"
    else:
        text = f"{outcome.good} of {GOOD_JOBS} good jobs ran"
    if outcome.good == GOOD_JOBS and not outcome.later:
        text += ", a later one did not"
    if outcome.good == GOOD_JOBS and outcome.unfinished:
        text += f", {outcome.unfinished} stay unfinished in its table"
    if outcome.twice:
        text += f", {outcome.twice} ran twice"
    error = outcome.how.replace("|", "\\|").replace("`", "'")
    return f"{text}: `{error}`"
