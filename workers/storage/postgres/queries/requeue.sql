-- Dead jobs get another life with fresh counters; one that meets an identical waiting job makes way for it.
-- The insert waits for a transaction that is just enqueueing an identical job: callers bound that with lock_timeout.
WITH gone AS (
    DELETE FROM dead_jobs WHERE id = ANY(%(ids)s::bigint[]) RETURNING *
), back AS (
    INSERT INTO background_jobs AS job (id, job_type, data, created_at, priority, deduplicated, queue, dedup_key, last_error)
    SELECT
        id, job_type, data, created_at, priority, deduplicated, queue,
        CASE WHEN deduplicated THEN workers_dedup_key(job_type, data, priority) END, last_error
    FROM gone
    ORDER BY id
    ON CONFLICT (dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING
    RETURNING job.id, job.queue, job.priority, job.position
), announced AS (
    SELECT workers_notify(queue, priority, min(position)) FROM back GROUP BY queue, priority
), told AS MATERIALIZED (
    SELECT count(*) FROM announced
)
SELECT back.id FROM back CROSS JOIN told ORDER BY back.id
