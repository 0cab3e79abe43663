-- Rows per queue and state. Reads the whole hot table: for people and dashboards, not for a hot path.
WITH live AS (
    SELECT
        coalesce(queue, '') AS queue,
        count(*) FILTER (WHERE session_id IS NULL AND run_at IS NOT NULL AND retries = 0) AS scheduled,
        count(*) FILTER (WHERE session_id IS NULL AND run_at IS NULL) AS available,
        count(*) FILTER (WHERE session_id IS NOT NULL) AS running,
        count(*) FILTER (WHERE session_id IS NULL AND run_at IS NOT NULL AND retries > 0) AS retryable,
        min(created_at) FILTER (WHERE session_id IS NULL AND run_at IS NULL) AS oldest
    FROM background_jobs GROUP BY 1
), dead AS (
    SELECT coalesce(queue, '') AS queue, count(*) AS dead FROM dead_jobs GROUP BY 1
), archived AS (
    SELECT coalesce(queue, '') AS queue, count(*) AS archived FROM archived_jobs GROUP BY 1
)
SELECT
    queue, coalesce(scheduled, 0), coalesce(available, 0), coalesce(running, 0), coalesce(retryable, 0),
    coalesce(dead, 0), coalesce(archived, 0),
    -- within limits: a time written by hand may be infinite
    coalesce(least(greatest(extract(epoch FROM now()) - extract(epoch FROM oldest), 0), 1e10), 0)::float8
FROM live FULL JOIN dead USING (queue) FULL JOIN archived USING (queue)
ORDER BY queue
