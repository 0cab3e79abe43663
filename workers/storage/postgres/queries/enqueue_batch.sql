-- Many ordinary jobs of one type in one round trip; the ids come back in the order of the batch.
-- One announcement for all, made first, as it is sent at the commit anyway: rows that ran through a CTE to be counted would take
-- a tenth longer. All of them get positions above the one that is drawn here, and a scan hint is pulled back far enough.
WITH due AS MATERIALIZED (
    SELECT run_at, CASE WHEN run_at IS NULL THEN workers_notify(
        %(queue)s::text, CAST(%(priority)s AS smallint), nextval('background_jobs_position_seq') + 1
    ) END
    FROM workers_run_at(%(run_at)s::timestamptz, %(delay)s::float8) AS run_at
)
INSERT INTO background_jobs (job_type, data, priority, queue, run_at)
SELECT %(job_type)s::text, item.data::jsonb, CAST(%(priority)s AS smallint), %(queue)s::text, due.run_at
FROM due CROSS JOIN unnest(%(data)s::text[]) WITH ORDINALITY AS item (data, ordinal)
ORDER BY item.ordinal
RETURNING currval('background_jobs_id_seq')
