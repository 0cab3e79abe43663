-- The row comes after the lock: a row without a lock is a death.
INSERT INTO worker_sessions (id, name, queues, lease_until)
VALUES (%(session)s, %(name)s, %(queues)s::text[], now() + %(lease)s * interval '1 second')
