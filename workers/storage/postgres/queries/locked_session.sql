-- The lock, that was with somebody else until now, speaks for the session again. The row comes after the lock.
UPDATE worker_sessions
SET lease_only = false, locked_under = pg_postmaster_start_time(), suspect_since = NULL
WHERE id = %(session)s
