-- Ordinary jobs go back to waiting: retried, snoozed, interrupted or never started. A NULL delay means available at once.
-- Rows are locked in id order, so that overlapping statements do not deadlock; one that somebody else has locked is left as it
-- is, and told of: NULL. Nothing here can raise: counters are capped, delays are bounded. (Why `id = ANY`: see maintain.sql.)
WITH guard AS (
    SELECT *
    FROM unnest(
        %(ids)s::bigint[], %(tokens)s::bigint[], %(delays)s::float8[], %(errors)s::text[], %(counted)s::boolean[],
        %(cleared)s::boolean[]
    ) AS guard (id, token, delay, error, counted, cleared)
), held AS MATERIALIZED (
    SELECT *, nextval('background_jobs_position_seq') AS position
    FROM (
        SELECT job.id, guard.delay, guard.error, guard.counted, guard.cleared
        FROM background_jobs AS job JOIN guard ON job.id = guard.id AND job.claim_token = guard.token
        WHERE job.id = ANY(%(ids)s::bigint[]) AND job.session_id = %(session)s
        ORDER BY job.id
        FOR UPDATE OF job SKIP LOCKED
    ) AS own
), back AS (
    UPDATE background_jobs AS job
    SET session_id = NULL,
        claim_token = NULL,
        retries = CASE WHEN held.counted THEN least(job.retries, 2147483646) + 1 ELSE job.retries END,
        crashes = CASE WHEN held.cleared THEN 0 ELSE job.crashes END,
        last_retry = CASE WHEN held.counted THEN now() ELSE job.last_retry END,
        last_error = coalesce(held.error, job.last_error),
        run_at = workers_run_at(NULL, held.delay),
        position = held.position
    FROM held
    WHERE job.id = held.id AND job.id = ANY(ARRAY(SELECT id FROM held))
    RETURNING job.id, job.queue, job.priority, job.position, job.run_at
), announced AS (
    SELECT workers_notify(queue, priority, min(position)) FROM back WHERE run_at IS NULL GROUP BY queue, priority
), told AS MATERIALIZED (
    SELECT count(*) FROM announced
)
SELECT back.id, true FROM back CROSS JOIN told
UNION ALL
INCLUDE left_locked
