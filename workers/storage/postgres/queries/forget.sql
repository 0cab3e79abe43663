-- Claims of which no job is left in this runner's hands.
DELETE FROM worker_claims WHERE session_id = %(session)s AND token = ANY(%(closed)s::bigint[])
