-- Give back the ordinary jobs of every dead session, each with one crash more. All claims of sessions that are not alive are
-- looked at, each time: a claim that was on its way when its session died may have landed since. Rows that are still locked
-- (a transaction of the dead process that the server has not noticed) are left for the next sweep. (Why `id = ANY`: see maintain.sql.)
WITH claim AS MATERIALIZED (
    SELECT claim.session_id, claim.token, unnest(claim.ids) AS id
    FROM worker_sessions AS session JOIN worker_claims AS claim ON claim.session_id = session.id
    WHERE NOT session.alive
), lost AS MATERIALIZED (
    SELECT *, nextval('background_jobs_position_seq') AS position
    FROM (
        SELECT job.id, job.session_id
        FROM claim
        JOIN background_jobs AS job
            ON job.id = claim.id AND job.session_id = claim.session_id AND job.claim_token = claim.token
        WHERE job.id = ANY(ARRAY(SELECT id FROM claim)) AND NOT job.deduplicated
        ORDER BY job.id
        FOR UPDATE OF job SKIP LOCKED
    ) AS ordinary
), back AS (
    UPDATE background_jobs AS job
    SET session_id = NULL,
        claim_token = NULL,
        crashes = least(job.crashes, 32766) + 1,
        position = lost.position
    FROM lost
    WHERE job.id = lost.id AND job.id = ANY(ARRAY(SELECT id FROM lost))
    RETURNING lost.session_id, job.queue, job.priority, job.position
), announced AS (
    SELECT pg_notify(workers_channel(), 'suspects ' || min(position) || ' ' || priority || ' ' || queue) FROM back
    WHERE queue IS NOT NULL AND current_setting('workers.notify', true) IS DISTINCT FROM 'off'
    GROUP BY queue, priority
), told AS MATERIALIZED (
    SELECT count(*) FROM announced
)
SELECT session.id, session.name, session.dead_reason, count(*), '{}'::bigint[]
FROM back JOIN worker_sessions AS session ON session.id = back.session_id CROSS JOIN told
GROUP BY session.id, session.name, session.dead_reason
