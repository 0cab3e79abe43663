-- Finished jobs, where workers_complete could not delete all of them. Those that somebody else has locked are told of: NULL;
-- nothing is said of those that are no longer this session's.
WITH guard AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) AS guard (id, token)
), held AS MATERIALIZED (
    SELECT job.id
    FROM background_jobs AS job JOIN guard ON job.id = guard.id AND job.claim_token = guard.token
    WHERE job.id = ANY(%(ids)s::bigint[]) AND job.session_id = %(session)s
    ORDER BY job.id
    FOR UPDATE OF job SKIP LOCKED
), gone AS (
    DELETE FROM background_jobs AS job
    USING held
    WHERE job.id = held.id AND job.id = ANY(ARRAY(SELECT id FROM held))
    RETURNING job.id
)
SELECT id, true FROM gone
UNION ALL
INCLUDE left_locked
