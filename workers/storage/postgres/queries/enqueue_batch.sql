-- Many ordinary jobs of one type in one round trip; the ids come back in the order of the batch.
-- One announcement for all: the lowest position is enough to pull a scan hint back.
WITH job AS (
    INSERT INTO background_jobs (job_type, data, priority, queue, run_at)
    SELECT
        %(job_type)s::text, item.data::jsonb, %(priority)s::smallint, %(queue)s::text,
        workers_run_at(%(run_at)s::timestamptz, %(delay)s::float8)
    FROM unnest(%(data)s::text[]) WITH ORDINALITY AS item (data, ordinal)
    ORDER BY item.ordinal
    RETURNING id, position, run_at
), announced AS (
    SELECT workers_notify(%(queue)s::text, %(priority)s::smallint, min(position))
    FROM job
    WHERE run_at IS NULL
    HAVING count(*) > 0
)
SELECT job.id FROM job LEFT JOIN announced ON true ORDER BY job.position
