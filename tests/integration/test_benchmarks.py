"""Each benchmark, as small as it goes: that it works and counts, not how fast it is."""

from __future__ import annotations

import math

import msgspec
import psycopg
import pytest

from benchmarks import bare, latency
from benchmarks.__main__ import BENCHMARKS
from benchmarks.bench import Options, Scale, fill, fresh_schema
from benchmarks.goals import GOALS
from tests.helpers.server import TestServer

FIELDS = {
    *("name", "n", "runs", "per_second", "min", "max", "limit_per_second"),
    *("ratio", "exactly_once"),
}
MORE = {
    "drain": {"wal_bytes_per_job"},
    "drain2": {"times_one_process"},
    "latency": {"p50_ms", "p99_ms", "limit_p50_ms", "limit_p99_ms"},
    "backlog": {"p50_ms", "p95_ms", "p99_ms", "points"},
    "scheduled": {"points"},
    "pinned": {"points", "whole_per_second", "whole_ratio"},
    "wakeup": {
        "notice_us",
        "to_claim_us",
        "claim_us",
        "to_job_us",
        "bare_notice_us",
        "bare_claim_us",
        "slow_notice_us",
        "slow_claim_us",
    },
    "enqueue_parts": {
        *("bare_us", "returning_us", "parameters_us", "question_us", "encode_us", "rest_us"),
        "returning_ratio",
    },
    "flush_claims": {"p50_ms", "limit_p50_ms", "drain_ratio"},
    "flush_enqueue": {"points"},
    "memory": {"rss_mb", "limit_rss_mb"},
    "python_time": {"driver_us", "hottest"},
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_job_ran_once_and_each_field_is_there(server: TestServer, name: str) -> None:
    result = BENCHMARKS[name](Options(server.dsn, Scale.TINY))
    found = msgspec.json.decode(msgspec.json.encode(result))
    wanted = FIELDS | MORE.get(name, set()) | {goal.field for goal in GOALS.get(name, [])}
    assert wanted <= found.keys()
    assert found["name"] == name
    assert found["exactly_once"] is True
    for field in ("n", "runs", "per_second", "limit_per_second", "ratio"):
        assert math.isfinite(found[field]), field
        assert found[field] > 0, field
    assert found["min"] <= found["per_second"] <= found["max"]


@pytest.mark.parametrize("jobs", [0, 20_000])
@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (bare._CLAIM, "background_jobs_fetch"),
        (latency._BARE_CLAIM, "background_jobs_fetch"),
        (bare._DELETE, "background_jobs_pkey"),
    ],
)
def test_what_is_compared_with_walks_an_index(
    server: TestServer, statement: str, index: str, jobs: int
) -> None:
    """A limit that reads and sorts the whole table each time would flatter the library."""
    given = {"hint": 10_000, "ids": "{1,2,3}"}
    with fresh_schema(Options(server.dsn)) as dsn:
        if jobs:
            fill(dsn, jobs)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(bare.PLANNER)
            lines = conn.execute("EXPLAIN " + statement, given, prepare=True).fetchall()
    plan = "\n".join(line for (line,) in lines)
    assert f"Index Scan using {index}" in plan
    assert "Seq Scan" not in plan
    assert "Sort" not in plan
