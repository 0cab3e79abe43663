-- The claims of a session that ends, but for those under which something still stands: a sweep will find that.
DELETE FROM worker_claims AS claim
WHERE claim.session_id = %(session)s
    AND NOT EXISTS (
        SELECT FROM background_jobs AS job
        WHERE job.id = ANY(claim.ids) AND job.session_id = claim.session_id AND job.claim_token = claim.token
    )
