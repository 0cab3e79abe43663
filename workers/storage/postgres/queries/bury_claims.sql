-- Claims of dead sessions under which nothing stands any more.
DELETE FROM worker_claims AS claim
USING worker_sessions AS session
WHERE session.id = claim.session_id AND NOT session.alive
    AND NOT EXISTS (
        SELECT FROM background_jobs AS job
        WHERE job.id = ANY(claim.ids) AND job.session_id = claim.session_id AND job.claim_token = claim.token
    )
