"""Rows that wait for schedules to exist."""

from __future__ import annotations

from tests.faults.harness import not_built

not_built("15", "N schedulers", "each slot fires exactly once", "there are no schedules yet")
not_built("16b", "clock changes, schedules", "slots fired twice 0", "there are no schedules yet")
