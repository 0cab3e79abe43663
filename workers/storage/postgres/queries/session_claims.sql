SELECT token, ids FROM worker_claims WHERE session_id = %(session)s
