-- One ordinary job that may have to wait for its time. One that is due at once after all is announced.
WITH due AS MATERIALIZED (
    SELECT workers_run_at(%(run_at)s::timestamptz, %(delay)s::float8) AS run_at
), job AS (
    INSERT INTO background_jobs (job_type, data, priority, queue, run_at)
    SELECT %(job_type)s::text, %(data)s::jsonb, CAST(%(priority)s AS smallint), %(queue)s::text, run_at FROM due
    RETURNING currval('background_jobs_id_seq') AS id, currval('background_jobs_position_seq') AS position
)
SELECT
    job.id,
    CASE WHEN due.run_at IS NULL THEN workers_notify(%(queue)s::text, CAST(%(priority)s AS smallint), job.position) END
FROM job CROSS JOIN due
