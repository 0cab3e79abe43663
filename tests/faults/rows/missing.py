"""The rows that wait for something else to be built first."""

from __future__ import annotations

from tests.faults.harness import not_built

not_built("15", "N schedulers", "", "there are no schedules yet")
not_built("16b", "clock changes, schedules", "", "there are no schedules yet")
