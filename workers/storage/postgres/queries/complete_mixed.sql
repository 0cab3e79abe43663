-- Delete finished jobs of several claims, each pair of id and token on its own.
WITH done AS (
    DELETE FROM background_jobs AS job
    USING unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) AS guard (id, token)
    WHERE job.id = guard.id AND job.session_id = %(session)s AND job.claim_token = guard.token
    RETURNING job.id
), forgotten AS (
    DELETE FROM worker_claims WHERE session_id = %(session)s AND token = ANY(%(closed)s::bigint[])
)
SELECT id FROM done
