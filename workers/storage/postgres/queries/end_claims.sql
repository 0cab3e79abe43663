-- The claims of a session under which nothing stands any more.
WITH claim AS MATERIALIZED (
    SELECT unnest(ids) AS id FROM worker_claims WHERE session_id = %(session)s
), standing AS MATERIALIZED (
    SELECT DISTINCT job.claim_token
    FROM background_jobs AS job
    WHERE job.id = ANY(ARRAY(SELECT id FROM claim)) AND job.session_id = %(session)s
)
DELETE FROM worker_claims
WHERE session_id = %(session)s AND token <> ALL(ARRAY(SELECT claim_token FROM standing))
