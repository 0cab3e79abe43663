-- The same session on a new connection. Suspicion ends with the lock: two sweeps must find it free in a row.
UPDATE worker_sessions
SET lease_until = now() + %(lease)s * interval '1 second', suspect_since = NULL
WHERE id = %(session)s AND alive
RETURNING id
