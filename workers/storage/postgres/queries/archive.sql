-- Jobs that ended and are to be kept move to the archive.
WITH guard AS (
    SELECT *
    FROM unnest(
        %(ids)s::bigint[], %(tokens)s::bigint[], %(states)s::text[], %(reasons)s::text[]
    ) AS guard (id, token, state, reason)
), gone AS (
    DELETE FROM background_jobs AS job
    USING guard
    WHERE job.id = ANY(%(ids)s::bigint[]) AND job.session_id = %(session)s
        AND job.id = guard.id AND job.claim_token = guard.token
    RETURNING job.*, guard.state, guard.reason
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
