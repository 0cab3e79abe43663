-- Many ordinary jobs of one type in one round trip; the ids come back in the order of the batch.
-- One announcement for all: the lowest position is enough to pull a scan hint back.
WITH due AS MATERIALIZED (
    SELECT workers_run_at(%(run_at)s::timestamptz, %(delay)s::float8) AS run_at
), job AS (
    INSERT INTO background_jobs (job_type, data, priority, queue, run_at)
    SELECT %(job_type)s::text, item.data::jsonb, CAST(%(priority)s AS smallint), %(queue)s::text, (SELECT run_at FROM due)
    FROM unnest(%(data)s::text[]) WITH ORDINALITY AS item (data, ordinal)
    ORDER BY item.ordinal
    RETURNING currval('background_jobs_id_seq') AS id, currval('background_jobs_position_seq') AS position
), announced AS (
    SELECT workers_notify(%(queue)s::text, CAST(%(priority)s AS smallint), min(position))
    FROM job
    HAVING count(*) > 0 AND (SELECT run_at FROM due) IS NULL
)
SELECT job.id FROM job LEFT JOIN announced ON true ORDER BY job.position
