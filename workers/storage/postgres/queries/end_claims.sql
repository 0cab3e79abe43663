-- The claims of a session under which nothing stands any more.
DELETE FROM worker_claims AS claim
WHERE claim.session_id = %(session)s
    AND NOT EXISTS (
        SELECT FROM background_jobs AS job
        WHERE job.id = ANY(claim.ids) AND job.session_id = claim.session_id AND job.claim_token = claim.token
    )
