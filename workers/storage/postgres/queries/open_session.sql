-- The row comes after the lock: a row without a lock is a death, unless its session has none.
INSERT INTO worker_sessions (id, name, queues, lease_only, locked_under, lease_until)
VALUES (
    %(session)s, %(name)s, %(queues)s::text[], %(lease_only)s, pg_postmaster_start_time(), now() + %(lease)s * interval '1 second'
)
RETURNING extract(epoch FROM started_at)::text
