-- Claims of dead sessions under which nothing stands any more.
WITH claim AS MATERIALIZED (
    SELECT claim.session_id, claim.token, unnest(claim.ids) AS id
    FROM worker_sessions AS session JOIN worker_claims AS claim ON claim.session_id = session.id
    WHERE NOT session.alive
), standing AS MATERIALIZED (
    SELECT DISTINCT job.session_id, job.claim_token
    FROM background_jobs AS job
    WHERE job.id = ANY(ARRAY(SELECT id FROM claim)) AND job.session_id IS NOT NULL AND job.claim_token IS NOT NULL
)
DELETE FROM worker_claims AS claim
USING worker_sessions AS session
WHERE session.id = claim.session_id AND NOT session.alive
    AND (claim.session_id, claim.token) NOT IN (SELECT session_id, claim_token FROM standing)
