"""The plan of the claim on a million rows: an index scan that ends after k rows. Rules 7 and 8.

The claim is a function, whose plans EXPLAIN does not show. So the statements are taken out of its source, as the server
has it, and explained under the function's own settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg

ROWS = 1_000_000
LIMIT = 100
#: The scans in the order in which they stand in the function.
SUSPECTS, THOROUGH, HINTED = range(3)

#: Most rows have other priorities than the one that the hint is for; some wait for a time, some run.
FILL = f"""
INSERT INTO background_jobs (job_type, data, queue, priority, run_at, session_id)
SELECT CASE n % 10 WHEN 0 THEN 'other' ELSE 'mail' END, '{{}}', 'default', n % 4,
    CASE n % 50 WHEN 7 THEN now() + interval '1 day' END, CASE n % 50 WHEN 8 THEN 4711 END
FROM generate_series(1, {ROWS}) AS n
"""
ARGUMENTS = {
    "$3": "'default'",
    "$4": "ARRAY['mail']",
    "$5": str(LIMIT),
    "$6": "ARRAY[3, 2, 1, 0]::smallint[]",
    "$7": f"ARRAY[{ROWS // 2}, 1, 1, 1]::bigint[]",
    "$8": "5",
}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def scans(conn: psycopg.Connection, number: int) -> list[dict[str, Any]]:
    """How the job table is read by the claim's scan `number`."""
    source = (
        "SELECT prosrc, proconfig FROM pg_proc"
        " WHERE proname = 'workers_claim' AND pronamespace = current_schema()::regnamespace"
    )
    ((body, settings),) = conn.execute(source)
    query = re.findall(r"picked := ARRAY\((.*?)\n        \);", body, re.DOTALL)[number]
    for name, value in ARGUMENTS.items():
        query = query.replace(name, value)
    with conn.transaction(force_rollback=True):
        for setting in settings:
            conn.execute(f"SET LOCAL {setting}".encode())
        ((found,),) = conn.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode())
    return [node for node in nodes(found[0]["Plan"]) if node.get("Relation Name")]


def test_a_claim_reads_what_it_takes(conn: psycopg.Connection) -> None:
    """Whatever the statistics say; one in ten is of a type that is not asked for, one in fifty runs already."""
    conn.execute("ALTER TABLE background_jobs SET (autovacuum_enabled = off)")
    conn.execute(FILL)
    for statistics in ("none", "fresh"):
        if statistics == "fresh":
            conn.execute("ANALYZE background_jobs")
        for number, scan in ((THOROUGH, "thorough"), (HINTED, "hinted")):
            found = scans(conn, number)
            where = (statistics, scan, found)
            assert {node["Node Type"] for node in found} == {"Index Scan"}, where
            assert {node["Index Name"] for node in found} == {"background_jobs_fetch"}, where
            taken = sum(node["Actual Rows"] * node["Actual Loops"] for node in found)
            passed_by = sum(
                node.get("Rows Removed by Filter", 0) * node["Actual Loops"] for node in found
            )
            assert taken == LIMIT, where
            assert passed_by <= LIMIT / 2, where
        (none,) = scans(conn, SUSPECTS)
        assert (none["Node Type"], none["Index Name"]) == ("Index Scan", "background_jobs_suspect")
        assert none["Actual Rows"] + none.get("Rows Removed by Filter", 0) == 0
