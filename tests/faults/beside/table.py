"""The table in docs/reliability.md."""

from __future__ import annotations

from tests.faults.beside.trial import Outcome


def write(outcomes: list[Outcome], not_run: dict[str, str]) -> None:
    """To be done."""
