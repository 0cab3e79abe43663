-- A session that ends in good order: nothing of it is a crash, so its row goes when its claims are gone.
DELETE FROM worker_sessions AS session
WHERE session.id = %(session)s AND NOT EXISTS (SELECT FROM worker_claims AS claim WHERE claim.session_id = session.id)
