-- The same session on a new connection. Suspicion ends with the lock: two sweeps must find it free in a row. Where the lock
-- could not be had (`lease_only`), its session is judged by the lease until it can.
UPDATE worker_sessions
SET lease_until = now() + %(lease)s * interval '1 second', lease_only = %(lease_only)s, suspect_since = NULL
WHERE id = %(session)s AND alive
RETURNING id
