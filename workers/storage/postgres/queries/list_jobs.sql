-- Jobs wherever they stand, one shape for all three tables. `state` or `id` narrows it; NULL means any.
-- Times come as seconds: PostgreSQL's reach further than Python's, and how they are written depends on the session.
SELECT
    id, job_type, state, queue, priority, data::text, retries, crashes,
    extract(epoch FROM created_at)::float8, extract(epoch FROM last_retry)::float8, extract(epoch FROM run_at)::float8,
    last_error, reason, extract(epoch FROM finished_at)::float8
FROM (
    SELECT * FROM (
        SELECT
            id, job_type,
            CASE WHEN session_id IS NOT NULL THEN 'running' WHEN run_at IS NULL THEN 'available'
                WHEN retries > 0 THEN 'retryable' ELSE 'scheduled' END AS state,
            queue, priority, data, retries, crashes, created_at, last_retry, run_at, last_error,
            NULL::text AS reason, NULL::timestamptz AS finished_at
        FROM background_jobs
        UNION ALL
        SELECT
            id, job_type, 'dead', queue, priority, data, retries, crashes, created_at, last_retry, NULL, last_error,
            reason, died_at
        FROM dead_jobs
        UNION ALL
        SELECT
            id, job_type, state, queue, priority, data, retries, crashes, created_at, last_retry, NULL, last_error,
            reason, finished_at
        FROM archived_jobs
    ) AS everywhere
    WHERE (%(state)s::text IS NULL OR state = %(state)s) AND (%(id)s::bigint IS NULL OR id = %(id)s) AND id > %(after)s
    ORDER BY id
    LIMIT %(limit)s
) AS job
ORDER BY id
