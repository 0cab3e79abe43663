DELETE FROM background_jobs WHERE id = %(id)s AND session_id = %(session)s AND claim_token = %(token)s
