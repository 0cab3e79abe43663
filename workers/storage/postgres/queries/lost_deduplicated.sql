-- The deduplicated jobs that rescue_deduplicated.sql would give back.
WITH claim AS MATERIALIZED (
    SELECT claim.session_id, claim.token, unnest(claim.ids) AS id
    FROM worker_sessions AS session JOIN worker_claims AS claim ON claim.session_id = session.id
    WHERE NOT session.alive
)
SELECT job.id
FROM claim
JOIN background_jobs AS job
    ON job.id = claim.id AND job.session_id = claim.session_id AND job.claim_token = claim.token
WHERE job.id = ANY(ARRAY(SELECT id FROM claim)) AND job.deduplicated
ORDER BY job.id
