"""The figures that are aimed at, on two cores with default durability. They mean something at full scale only."""

from __future__ import annotations

import msgspec

from .report import Result

__all__ = ["GOALS", "Goal", "judge"]


class Goal(msgspec.Struct, frozen=True):
    """A bound on one field of a result."""

    field: str
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        return (
            f"{self.field} >= {self.least:g}"
            if self.least is not None
            else f"{self.field} <= {self.most:g}"
        )

    def met(self, result: Result) -> bool:
        """Whether the result is within the bound."""
        value = float(getattr(result, self.field))
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


GOALS: dict[str, list[Goal]] = {
    "drain": [Goal("ratio", least=0.45), Goal("wal_bytes_per_job", most=650)],
    "drain_best": [Goal("ratio", least=0.6)],
    "drain2": [Goal("times_one_process", least=1.2)],
    "latency": [Goal("p50_ms", most=1.7), Goal("p99_ms", most=4), Goal("ratio", most=1.3)],
    "enqueue": [Goal("ratio", least=0.85)],
    "enqueue_quiet": [Goal("ratio", least=0.9)],
    "enqueue_batch": [Goal("ratio", least=0.8)],
    "enqueue_copy": [Goal("ratio", least=0.8)],
    "sleep": [Goal("ratio", least=0.95)],
    "sleep_1000": [Goal("ratio", least=0.95)],
    "backlog": [Goal("ratio", most=1.2)],
    "scheduled": [Goal("ratio", least=0.95)],
    "pinned": [
        Goal("ratio", least=0.9),
        Goal("first_start_s", most=2),
        Goal("late_notified_s", most=2),
        Goal("late_within_3s_s", most=2),
        Goal("late_over_budget_s", most=0),
        Goal("retried_s", most=2),
    ],
    "memory": [Goal("rss_mb", most=50), Goal("kb_per_worker", most=20)],
    "idle": [Goal("statements_per_poll", most=1), Goal("cpu_percent", most=0.5)],
    "python_time": [Goal("library_us", most=13)],
    "telemetry": [Goal("us_per_job", most=2)],
}


def judge(result: Result) -> str:
    """Each goal of the benchmark, and whether it was met."""
    goals = GOALS.get(result.name, [])
    return "; ".join(f"{goal} {'met' if goal.met(result) else 'MISSED'}" for goal in goals)
