-- The same session on a new connection. (`started`: its id comes again where somebody empties the tables, or restores them.)
-- Suspicion ends with the lock: two sweeps must find it free in a row. Where the lock could not be had (`lease_only`), its
-- session is judged by the lease until it can.
UPDATE worker_sessions
SET
    lease_until = now() + %(lease)s * interval '1 second',
    lease_only = %(lease_only)s,
    locked_under = pg_postmaster_start_time(),
    suspect_since = NULL
WHERE id = %(session)s AND alive AND extract(epoch FROM started_at) = %(started)s::numeric
RETURNING id
