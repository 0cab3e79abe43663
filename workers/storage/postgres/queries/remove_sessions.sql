-- Second half, in the same transaction but with a newer snapshot: what is locked now can't gain claims.
DELETE FROM worker_sessions AS session
WHERE session.id = ANY(%(sessions)s::bigint[])
    AND NOT EXISTS (SELECT FROM worker_claims AS claim WHERE claim.session_id = session.id)
