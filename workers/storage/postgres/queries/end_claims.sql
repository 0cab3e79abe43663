-- The claims of a session under which nothing stands any more. One to which a scan has added meanwhile is another one by now.
WITH found AS MATERIALIZED (
    SELECT token, ids FROM worker_claims WHERE session_id = %(session)s
), standing AS MATERIALIZED (
    SELECT DISTINCT job.claim_token
    FROM background_jobs AS job
    WHERE job.id = ANY(ARRAY(SELECT unnest(ids) FROM found)) AND job.session_id = %(session)s
)
DELETE FROM worker_claims AS claim
USING found
WHERE claim.session_id = %(session)s AND claim.token = found.token AND claim.ids = found.ids
    AND claim.token <> ALL(ARRAY(SELECT claim_token FROM standing))
