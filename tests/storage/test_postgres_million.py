"""The plan of the claim on a million rows: an index scan that ends after k rows. Rules 7 and 8.

It is the plan that a runner has: prepared, the same for all parameters, and with the settings of its connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg

from workers.storage.postgres.claim_link import CLAIM_PLANNER
from workers.storage.postgres.claiming import HINTED, SUSPECTS, THOROUGH

ROWS = 1_000_000
LIMIT = 100

#: Most rows have other priorities than the one that the hint is for; some wait for a time, some run.
FILL = f"""
INSERT INTO background_jobs (job_type, data, queue, priority, run_at, session_id)
SELECT CASE n % 10 WHEN 0 THEN 'other' ELSE 'mail' END, '{{}}', 'default', n % 4,
    CASE n % 50 WHEN 7 THEN now() + interval '1 day' END, CASE n % 50 WHEN 8 THEN 4711 END
FROM generate_series(1, {ROWS}) AS n
"""
ARGUMENTS = {
    "session": "1",
    "token": "1",
    "queue": "'default'",
    "job_types": "ARRAY['mail']",
    "limit": str(LIMIT),
    "priorities": "ARRAY[3, 2, 1, 0]::smallint[]",
    "positions": f"ARRAY[{ROWS // 2}, 1, 1, 1]::bigint[]",
    "suspects": "5",
}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def scans(conn: psycopg.Connection, claim: str) -> list[dict[str, Any]]:
    """How the job table is read by `claim`: by its scan, and by what takes the rows."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", claim)))
    query = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", claim)
    arguments = ", ".join(ARGUMENTS[name] for name in names)
    with conn.transaction(force_rollback=True):
        for name, value in CLAIM_PLANNER.items():
            conn.execute(f"SET LOCAL {name} = {value}".encode())
        conn.execute(f"PREPARE claim AS {query}".encode())
        ((found,),) = conn.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE claim ({arguments})".encode()
        )
        conn.execute("DEALLOCATE claim")
    read = [node for node in nodes(found[0]["Plan"]) if "Scan" in node["Node Type"]]
    return [node for node in read if node.get("Relation Name") == "background_jobs"]


def test_a_claim_reads_what_it_takes(conn: psycopg.Connection) -> None:
    """Whatever the statistics say; one in ten is of a type that is not asked for, one in fifty runs already."""
    conn.execute("ALTER TABLE background_jobs SET (autovacuum_enabled = off)")
    conn.execute(FILL)
    conn.execute(
        "INSERT INTO worker_sessions (id, name, lease_until) VALUES (1, 'one', now() + interval '1 hour')"
    )
    for statistics in ("none", "fresh"):
        if statistics == "fresh":
            conn.execute("ANALYZE background_jobs")
        for scan, claim in (("thorough", THOROUGH), ("hinted", HINTED)):
            found = scans(conn, claim)
            where = (statistics, scan, found)
            assert {node["Node Type"] for node in found} == {"Index Scan"}, where
            by_index = {node["Index Name"]: node for node in found}
            assert by_index.keys() == {"background_jobs_fetch", "background_jobs_pkey"}, where
            for node in found:
                taken = node["Actual Rows"] * node["Actual Loops"]
                passed_by = node.get("Rows Removed by Filter", 0) * node["Actual Loops"]
                assert taken == LIMIT, where
                assert passed_by <= LIMIT / 2, where
        found = scans(conn, SUSPECTS)
        by_index = {node["Index Name"]: node for node in found}
        assert by_index.keys() == {"background_jobs_suspect", "background_jobs_pkey"}
        for node in found:
            assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) == 0
