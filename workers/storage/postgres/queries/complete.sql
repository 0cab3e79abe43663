-- Delete finished jobs of one claim. Guarded by session and token: a row that was taken away in the meantime is not there.
WITH done AS (
    DELETE FROM background_jobs
    WHERE id = ANY(%(ids)s::bigint[]) AND session_id = %(session)s AND claim_token = %(token)s
    RETURNING id
), forgotten AS (
    DELETE FROM worker_claims WHERE session_id = %(session)s AND token = ANY(%(closed)s::bigint[])
)
SELECT id FROM done
