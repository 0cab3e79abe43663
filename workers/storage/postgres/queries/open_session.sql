-- The row comes after the lock: a row without a lock is a death.
INSERT INTO worker_sessions (id, name, lease_until)
VALUES (%(session)s, %(name)s, now() + %(lease)s * interval '1 second')
