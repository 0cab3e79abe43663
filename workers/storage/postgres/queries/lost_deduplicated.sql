-- The deduplicated jobs that rescue_deduplicated.sql would give back.
SELECT job.id
FROM worker_sessions AS session
JOIN worker_claims AS claim ON claim.session_id = session.id
JOIN background_jobs AS job
    ON job.id = ANY(claim.ids) AND job.session_id = claim.session_id AND job.claim_token = claim.token
WHERE NOT session.alive AND job.deduplicated
ORDER BY job.id
