-- What stands under the given tokens of a session, with the flag that says which statement gives it back.
WITH claim AS MATERIALIZED (
    SELECT unnest(ids) AS id
    FROM worker_claims
    WHERE session_id = %(session)s AND token = ANY(%(tokens)s::bigint[])
)
SELECT job.id, job.claim_token, job.deduplicated
FROM background_jobs AS job
WHERE job.id = ANY(ARRAY(SELECT id FROM claim))
    AND job.session_id = %(session)s AND job.claim_token = ANY(%(tokens)s::bigint[])
