-- The same for deduplicated jobs, which may meet an identical waiting row, or a twin of their own batch. An UPDATE would
-- raise; so the row is taken out and put back under its own id, and makes way where an identical one waits (superseded).
-- A crash is the work's, not the row's: the identical job that waits takes over the count, as in rescue_deduplicated.sql. So it
-- does the time of what was merely interrupted (no delay): that is now. (Not one that a producer's transaction holds.)
-- The insert waits for a transaction that is just enqueueing an identical job: callers bound that with lock_timeout.
WITH guard AS (
    SELECT *
    FROM unnest(
        %(ids)s::bigint[], %(tokens)s::bigint[], %(delays)s::float8[], %(errors)s::text[], %(counted)s::boolean[],
        %(cleared)s::boolean[]
    ) AS guard (id, token, delay, error, counted, cleared)
), gone AS (
    DELETE FROM background_jobs AS job
    USING guard
    WHERE job.id = ANY(%(ids)s::bigint[]) AND job.session_id = %(session)s
        AND job.id = guard.id AND job.claim_token = guard.token
    RETURNING job.*, guard.delay, guard.error, guard.counted, guard.cleared
), keyed AS MATERIALIZED (
    SELECT *,
        max(CASE WHEN cleared THEN 0 ELSE crashes END) OVER (PARTITION BY key) AS after,
        bool_or(delay IS NULL) OVER (PARTITION BY key) AS due
    FROM (SELECT *, workers_dedup_key(job_type, data, priority) AS key FROM gone) AS given
), twin AS MATERIALIZED (
    SELECT job.id, job.dedup_key AS key
    FROM background_jobs AS job
    WHERE job.dedup_key = ANY(ARRAY(SELECT key FROM keyed WHERE after > 0 OR due))
        -- one that is fine as it is stays free for a claim
        AND (job.run_at IS NOT NULL OR job.crashes < (SELECT max(after) FROM keyed))
    FOR UPDATE SKIP LOCKED
), marked AS (
    UPDATE background_jobs AS job
    SET crashes = greatest(job.crashes, keyed.after),
        run_at = CASE WHEN NOT keyed.due THEN job.run_at END,
        position = CASE
            WHEN keyed.due AND job.run_at IS NOT NULL THEN nextval('background_jobs_position_seq') ELSE job.position
        END
    FROM twin JOIN (SELECT DISTINCT key, after, due FROM keyed) AS keyed ON keyed.key = twin.key
    WHERE job.id = twin.id AND job.id = ANY(ARRAY(SELECT id FROM twin))
    RETURNING job.queue, job.priority, job.position, job.run_at
), back AS (
    INSERT INTO background_jobs AS job (
        id, job_type, data, retries, last_retry, created_at, priority, crashes, deduplicated, queue, run_at, dedup_key, last_error
    )
    SELECT
        id, job_type, data,
        CASE WHEN counted THEN least(retries, 2147483646) + 1 ELSE retries END,
        CASE WHEN counted THEN now() ELSE last_retry END,
        created_at, priority, after, true, queue,
        CASE WHEN NOT due THEN workers_run_at(NULL, delay) END, key, coalesce(error, last_error)
    FROM keyed
    ORDER BY id
    ON CONFLICT (dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING
    RETURNING job.id, job.queue, job.priority, job.position, job.run_at
), announced AS (
    SELECT workers_notify(queue, priority, min(position))
    FROM (
        SELECT queue, priority, position, run_at FROM back UNION ALL SELECT queue, priority, position, run_at FROM marked
    ) AS waiting
    WHERE run_at IS NULL
    GROUP BY queue, priority
), told AS MATERIALIZED (
    SELECT count(*) FROM announced
)
SELECT gone.id, back.id IS NOT NULL FROM gone LEFT JOIN back ON back.id = gone.id CROSS JOIN told
