"""Which statement writes a transition, and its parameters. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from ...errors import StorageRejectedError
from ...lifecycle import Archive, Bury, Delete, Release, Retry, Wait, clears_crashes
from ..base import Guard, Settled, Settlement
from .literals import integer_array, number_array, text_array

__all__ = ["KINDS", "columns", "grouped", "guard_columns", "settled"]

#: The queries that settle. `wait_deduplicated` stands in for deduplicated jobs that go back to waiting.
KINDS = ("complete", "archive", "bury", "wait", "wait_deduplicated")

_by_id_and_token = attrgetter("id", "token")


def grouped(settlements: Iterable[Settlement]) -> dict[str, list[Settlement]]:
    """The settlements by the query that writes them."""
    groups: dict[str, list[Settlement]] = {}
    for settlement in settlements:
        groups.setdefault(_kind(settlement), []).append(settlement)
    return groups


def _kind(settlement: Settlement) -> str:
    if settlement.may_have_to_wait:
        return "wait_deduplicated"
    match settlement.transition:
        case Retry() | Wait() | Release():
            return "wait"
        case Bury():
            return "bury"
        case Archive():
            return "archive"
        case Delete():
            return "complete"
    raise StorageRejectedError(f"no statement for {settlement.transition!r}")


def guard_columns(guards: Iterable[Guard]) -> dict[str, str]:
    """Ids and tokens, by rising id, so that statements that overlap meet in the same order; of an id that comes twice,
    the latest claim last."""
    ordered = sorted(guards, key=_by_id_and_token)
    return {
        "ids": integer_array([guard.id for guard in ordered]),
        "tokens": integer_array([guard.token for guard in ordered]),
    }


def columns(kind: str, group: Sequence[Settlement]) -> dict[str, str]:
    """The parameters of the query that writes `group`."""
    ordered = sorted(group, key=lambda item: _by_id_and_token(item.guard))
    transitions: list[Any] = [item.transition for item in ordered]
    given = guard_columns(item.guard for item in ordered)
    if kind == "archive":
        given["states"] = text_array([transition.state for transition in transitions])
        given["reasons"] = text_array([transition.reason for transition in transitions])
        return given
    given["errors"] = text_array([getattr(transition, "error", None) for transition in transitions])
    if kind == "bury":
        given["reasons"] = text_array([transition.reason for transition in transitions])
        given["counted"] = number_array([transition.attempted for transition in transitions])
    else:
        given["delays"] = number_array([getattr(item, "delay", None) for item in transitions])
        given["counted"] = number_array([isinstance(item, Retry) for item in transitions])
        given["cleared"] = number_array([clears_crashes(item) for item in transitions])
    return given


def settled(rows: Sequence[Sequence[Any]], blocked: Iterable[int] = ()) -> Settled:
    """What those queries answer: each id, and whether it was written; if not, it made way. NULL: somebody has locked it."""
    by_answer: dict[bool | None, list[int]] = {True: [], False: [], None: list(blocked)}
    for row in rows:
        by_answer[row[1]].append(row[0])
    return Settled(by_answer[True], by_answer[False], by_answer[None])
