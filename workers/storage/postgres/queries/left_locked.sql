-- Of the jobs in `guard` those that are not `held`, though they are this session's: somebody else has locked their rows.
SELECT job.id, NULL
FROM background_jobs AS job JOIN guard ON job.id = guard.id AND job.claim_token = guard.token
WHERE (SELECT count(*) FROM held) < cardinality(%(ids)s::bigint[])
    AND job.id = ANY(%(ids)s::bigint[]) AND job.session_id = %(session)s
    AND NOT EXISTS (SELECT FROM held WHERE held.id = job.id)
