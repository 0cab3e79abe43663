-- Claims of dead sessions under which nothing stands any more. One to which a scan has added meanwhile is another one by now.
WITH found AS MATERIALIZED (
    SELECT claim.session_id, claim.token, claim.ids
    FROM worker_sessions AS session JOIN worker_claims AS claim ON claim.session_id = session.id
    WHERE NOT session.alive
), standing AS MATERIALIZED (
    SELECT DISTINCT job.session_id, job.claim_token
    FROM background_jobs AS job
    WHERE job.id = ANY(ARRAY(SELECT unnest(ids) FROM found)) AND job.session_id IS NOT NULL AND job.claim_token IS NOT NULL
)
DELETE FROM worker_claims AS claim
USING found
WHERE claim.session_id = found.session_id AND claim.token = found.token AND claim.ids = found.ids
    AND (claim.session_id, claim.token) NOT IN (SELECT session_id, claim_token FROM standing)
