-- Claim from where the last scan of each priority ended: up to k available jobs, highest priority first.
--
-- While any transaction holds an old snapshot, the index entries of deleted rows stay, and a scan from the start walks them
-- all. Starting at a hint skips them. A hint is never a truth (sequence order is not commit order): trailing and thorough
-- scans follow it.
--
-- `live`: a claim on its way while its session was reaped takes nothing. KEY SHARE keeps the session's row from being
-- removed before this claim is visible to the sweep, and does not conflict with the renewal of its lease.
WITH live AS MATERIALIZED (
    SELECT id FROM worker_sessions WHERE id = %(session)s AND alive FOR KEY SHARE
), picked AS MATERIALIZED (
    SELECT row.id
    FROM unnest(%(priorities)s::smallint[], %(positions)s::bigint[]) AS hint (priority, position)
    CROSS JOIN LATERAL (
        SELECT job.id
        FROM background_jobs AS job
        WHERE job.queue = %(queue)s
            AND job.priority = hint.priority
            AND job.run_at IS NULL
            AND job.position >= hint.position
            AND job.session_id IS NULL
            AND job.crashes = 0
            AND job.job_type = ANY(%(job_types)s)
        ORDER BY job.position
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) AS row
    LIMIT %(limit)s
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
