-- The same for deduplicated jobs: taken out and put back, or superseded. See wait_deduplicated.sql. `only`: these jobs alone.
-- A crash is the work's, not the row's: the identical job that stays takes over the count, or a job that kills its process
-- and is enqueued again while it runs would never be found. So it does the time, which is now. (Not one that a producer's
-- transaction holds: that would wait.)
WITH claim AS MATERIALIZED (
    SELECT claim.session_id, claim.token, unnest(claim.ids) AS id
    FROM worker_sessions AS session JOIN worker_claims AS claim ON claim.session_id = session.id
    WHERE NOT session.alive
), lost AS MATERIALIZED (
    SELECT job.id
    FROM claim
    JOIN background_jobs AS job
        ON job.id = claim.id AND job.session_id = claim.session_id AND job.claim_token = claim.token
    WHERE job.id = ANY(ARRAY(SELECT id FROM claim)) AND job.deduplicated
        AND (%(only)s::bigint[] IS NULL OR job.id = ANY(%(only)s::bigint[]))
    ORDER BY job.id
    FOR UPDATE OF job SKIP LOCKED
), gone AS (
    DELETE FROM background_jobs AS job WHERE job.id = ANY(ARRAY(SELECT id FROM lost)) RETURNING job.*
), guilty AS MATERIALIZED (
    SELECT *, least(max(crashes) OVER (PARTITION BY key), 32766) + 1 AS after
    FROM (SELECT *, workers_dedup_key(job_type, data, priority) AS key FROM gone) AS keyed
), twin AS MATERIALIZED (
    SELECT job.id, job.dedup_key AS key
    FROM background_jobs AS job
    WHERE job.dedup_key = ANY(ARRAY(SELECT key FROM guilty))
    FOR UPDATE SKIP LOCKED
), marked AS (
    UPDATE background_jobs AS job
    SET crashes = greatest(job.crashes, guilty.after),
        run_at = NULL,
        position = CASE WHEN job.run_at IS NULL THEN job.position ELSE nextval('background_jobs_position_seq') END
    FROM twin JOIN (SELECT DISTINCT key, after FROM guilty) AS guilty ON guilty.key = twin.key
    WHERE job.id = twin.id AND job.id = ANY(ARRAY(SELECT id FROM twin))
), back AS (
    INSERT INTO background_jobs AS job (
        id, job_type, data, retries, last_retry, created_at, priority, crashes, deduplicated, queue, dedup_key, last_error
    )
    SELECT id, job_type, data, retries, last_retry, created_at, priority, after, true, queue, key, last_error
    FROM guilty
    ORDER BY id
    ON CONFLICT (dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING
    RETURNING job.id, job.queue, job.priority, job.position
), announced AS (
    SELECT pg_notify(workers_channel(), 'suspects ' || min(position) || ' ' || priority || ' ' || queue) FROM back
    WHERE queue IS NOT NULL AND current_setting('workers.notify', true) IS DISTINCT FROM 'off'
    GROUP BY queue, priority
), told AS MATERIALIZED (
    SELECT count(*) FROM announced
)
SELECT
    session.id, session.name, session.dead_reason, count(*),
    coalesce(array_agg(gone.id) FILTER (WHERE back.id IS NULL), '{}')
FROM gone
JOIN worker_sessions AS session ON session.id = gone.session_id
LEFT JOIN back ON back.id = gone.id
CROSS JOIN told
GROUP BY session.id, session.name, session.dead_reason
