-- One ordinary job that may have to wait for its time. One that is due at once after all is announced.
WITH job AS (
    INSERT INTO background_jobs (job_type, data, priority, queue, run_at)
    VALUES (
        %(job_type)s::text, %(data)s::jsonb, %(priority)s::smallint, %(queue)s::text,
        workers_run_at(%(run_at)s::timestamptz, %(delay)s::float8)
    )
    RETURNING id, queue, priority, position, run_at
)
SELECT id, CASE WHEN run_at IS NULL THEN workers_notify(queue, priority, position) END
FROM job
