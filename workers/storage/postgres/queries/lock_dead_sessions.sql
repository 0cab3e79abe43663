-- First half of removing dead sessions: a claim on its way holds KEY SHARE on its session, so such a session is skipped.
SELECT id FROM worker_sessions WHERE NOT alive ORDER BY id FOR UPDATE SKIP LOCKED
