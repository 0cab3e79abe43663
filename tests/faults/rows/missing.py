"""The rows that are still to be written at full size: what is missing, and the tests that inject the same fault once."""

from __future__ import annotations

from tests.faults.harness import not_built

_ONCE = {
    "3": ("frozen worker", "faults/test_frozen_workers.py"),
    "4": ("database crash", "faults/test_server_restarts.py"),
    "5": ("commit reply lost", "faults/test_lost_replies.py"),
    "6": ("poison jobs", "integration/test_poison.py"),
    "7": ("poison outcomes", "integration/test_jobs_exceptions.py"),
    "8": ("half-open link", "faults/test_half_open_links.py"),
    "9": ("backends terminated", "faults/test_terminated_backends.py"),
    "10": ("control connection alone dies", "faults/test_terminated_backends.py"),
    "11": ("lock, statement, idle timeouts", "faults/test_hostile_settings.py"),
    "12": ("overlapping bulk completions", "storage/test_postgres_locks.py"),
    "13": ("default_transaction_isolation serializable", "faults/test_hostile_settings.py"),
    "13b": ("claim reply lost", "faults/test_lost_replies.py"),
    "13c": ("deduplication against an open transaction", "faults/test_deduplication.py"),
    "13d": ("bulk give-back of identical deduplicated jobs", "faults/test_deduplication.py"),
    "14": ("deduplication race", "faults/test_deduplication.py"),
    "21": ("jobs that misbehave", "integration/test_isolation.py"),
    "22": ("old and new code under load", "faults/test_mixed_versions.py"),
}
_MISSING = {
    "15": ("N schedulers", "there are no schedules yet"),
    "16": ("clocks and session time zones", "not written yet"),
    "16b": ("clock changes, schedules", "there are no schedules yet"),
    "18": ("small pool, max_connections reached, 200 runners", "not written yet"),
    "19": ("PgBouncer in transaction mode", "not written yet"),
} | {
    name: (fault, f"not at full size yet; once, in tests/{where}")
    for name, (fault, where) in _ONCE.items()
}
for _name, (_fault, _missing) in _MISSING.items():
    not_built(_name, _fault, "", _missing)
