-- Jobs that will not be tried again move to the dead letters. One that somebody else has locked stays, and is told of: NULL.
WITH guard AS (
    SELECT *
    FROM unnest(
        %(ids)s::bigint[], %(tokens)s::bigint[], %(reasons)s::text[], %(errors)s::text[], %(counted)s::boolean[]
    ) AS guard (id, token, reason, error, counted)
), held AS MATERIALIZED (
    SELECT job.id, guard.reason, guard.error, guard.counted
    FROM background_jobs AS job JOIN guard ON job.id = guard.id AND job.claim_token = guard.token
    WHERE job.id = ANY(%(ids)s::bigint[]) AND job.session_id = %(session)s
    ORDER BY job.id
    FOR UPDATE OF job SKIP LOCKED
), gone AS (
    DELETE FROM background_jobs AS job
    USING held
    WHERE job.id = held.id AND job.id = ANY(ARRAY(SELECT id FROM held))
    RETURNING job.*, held.reason, held.error, held.counted
), dead AS (
    INSERT INTO dead_jobs AS dead (
        id, job_type, data, retries, last_retry, created_at, priority, crashes, deduplicated, queue, reason, last_error
    )
    SELECT
        id, job_type, data,
        CASE WHEN counted THEN least(retries, 2147483646) + 1 ELSE retries END,
        CASE WHEN counted THEN now() ELSE last_retry END,
        created_at, priority, crashes, deduplicated, queue, reason, coalesce(error, last_error)
    FROM gone
    ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, last_error = excluded.last_error, died_at = now()
)
SELECT id, true FROM gone
UNION ALL
INCLUDE left_locked
