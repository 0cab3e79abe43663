-- A transactional job holds its own row for as long as it runs. No row: it was taken away, or taken back.
SELECT id FROM background_jobs
WHERE id = %(id)s AND session_id = %(session)s AND claim_token = %(token)s
FOR UPDATE
