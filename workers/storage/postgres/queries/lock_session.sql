-- A session that ends: waits for a claim on its way (KEY SHARE, see claim.sql) and keeps further ones off.
SELECT id FROM worker_sessions WHERE id = %(session)s FOR UPDATE
