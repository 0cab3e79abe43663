-- Jobs that were claimed when a process died, which ordinary claims leave alone. See claim.sql for `live`.
WITH live AS MATERIALIZED (
    SELECT id FROM worker_sessions WHERE id = %(session)s AND alive FOR KEY SHARE
), picked AS MATERIALIZED (
    SELECT job.id
    FROM background_jobs AS job
    WHERE job.queue = %(queue)s
        AND job.run_at IS NULL
        AND job.session_id IS NULL
        AND job.crashes > 0
        AND job.crashes <= %(suspects)s
        AND job.job_type = ANY(%(job_types)s)
    ORDER BY job.priority DESC, job.position
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE background_jobs AS job
    SET session_id = %(session)s, claim_token = %(token)s, dedup_key = NULL
    WHERE job.id = ANY(ARRAY(SELECT id FROM picked)) AND EXISTS (SELECT FROM live)
    RETURNING job.id, job.job_type, job.queue, job.priority, job.data::text AS data,
        job.retries, job.crashes, job.deduplicated, job.claim_token, job.position
), receipt AS (
    INSERT INTO worker_claims (session_id, token, ids)
    SELECT %(session)s, %(token)s, array_agg(id) FROM claimed HAVING count(*) > 0
)
SELECT * FROM claimed
