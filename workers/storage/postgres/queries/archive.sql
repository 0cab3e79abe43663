-- Jobs that ended and are to be kept move to the archive. One that somebody else has locked stays, and is told of: NULL.
WITH guard AS (
    SELECT *
    FROM unnest(
        %(ids)s::bigint[], %(tokens)s::bigint[], %(states)s::text[], %(reasons)s::text[]
    ) AS guard (id, token, state, reason)
), held AS MATERIALIZED (
    SELECT job.id, guard.state, guard.reason
    FROM background_jobs AS job JOIN guard ON job.id = guard.id AND job.claim_token = guard.token
    WHERE job.id = ANY(%(ids)s::bigint[]) AND job.session_id = %(session)s
    ORDER BY job.id
    FOR UPDATE OF job SKIP LOCKED
), gone AS (
    DELETE FROM background_jobs AS job
    USING held
    WHERE job.id = held.id AND job.id = ANY(ARRAY(SELECT id FROM held))
    RETURNING job.*, held.state, held.reason
), kept AS (
    INSERT INTO archived_jobs AS kept (
        id, job_type, data, retries, last_retry, created_at, priority, crashes, deduplicated, queue, state, reason, last_error
    )
    SELECT
        id, job_type, data, retries, last_retry, created_at, priority, crashes, deduplicated, queue, state, reason, last_error
    FROM gone
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, reason = excluded.reason, finished_at = now()
)
SELECT id, true FROM gone
UNION ALL
INCLUDE left_locked
