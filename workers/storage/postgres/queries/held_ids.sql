-- What stands under the given tokens of a session, with the flag that says which statement gives it back.
SELECT job.id, job.claim_token, job.deduplicated
FROM worker_claims AS claim
JOIN background_jobs AS job
    ON job.id = ANY(claim.ids) AND job.session_id = claim.session_id AND job.claim_token = claim.token
WHERE claim.session_id = %(session)s AND claim.token = ANY(%(tokens)s::bigint[])
