-- One second's housekeeping in one statement, from the control connection of a session.
--
-- renewed   this session's lease, when a third of it is gone. The lock is (still) held, so nobody has reason to suspect it.
--           (`started`: see retake_session.sql.)
-- fit       whether this session may judge others by their leases: not when its own was not renewed in time either. A server
--           or a network that stood still made everybody late.
-- judged    the other sessions. A free lock is not a death: restarts and terminated backends free the locks of healthy
--           runners, which take them again within a second. Dead means: found free twice, `suspicion` apart, though it was taken
--           on this very server since it was started, which is 5 s ago at least; or the lease has run out. The caller says which
--           of the two it may judge by.
-- quiet     whether the link of another session may be half open: its lock is held, and its connection has said nothing for half
--           of the time after which the server gives it up, and not for much longer, as a stopped process does. That takes
--           a millisecond where there are a thousand backends: of many sessions ten look, at random.
-- staged    scheduled and retryable rows that are due become available, in the order of their times: 10,000 of them, which
--           takes a fraction of a second, as the lease is not renewed meanwhile. The caller comes again for more.
-- homed     rows inserted without a queue get the one that their job type declares.
-- probed    a message to this runner's listener, now and then, to see whether it hears.
--
-- Nothing is staged or homed where not `stage`: see staging.py.
--
-- Where the job table is joined, `id = ANY` comes first: with PLANNER's settings (checkout.py) that is the primary key and a
-- hash join, whatever the statistics say.
WITH renewed AS (
    UPDATE worker_sessions
    SET lease_until = now() + %(lease)s * interval '1 second'
    WHERE id = %(session)s AND extract(epoch FROM started_at) = %(started)s::numeric
        AND alive AND %(renew)s AND lease_until < now() + %(lease)s * interval '0.67 second'
    RETURNING id
), held AS MATERIALIZED (
    SELECT objid::bigint AS id, pid
    FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = workers_lock_class()::oid
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
), fit AS MATERIALIZED (
    SELECT lease_until > now() + %(lease)s * interval '0.4 second' AS to_judge FROM worker_sessions WHERE id = %(session)s
), judged AS MATERIALIZED (
    SELECT
        other.id,
        lock.free,
        CASE
            WHEN %(judge_leases)s AND other.lease_until < now() AND (SELECT to_judge FROM fit) THEN 'its lease ran out'
            WHEN %(judge_locks)s AND lock.free
                AND other.suspect_since <= now() - %(suspicion)s * interval '1 second'
                AND pg_postmaster_start_time() < now() - interval '5 seconds' THEN 'its connection is gone'
        END AS verdict
    FROM worker_sessions AS other
    CROSS JOIN LATERAL (
        SELECT other.id NOT IN (SELECT id FROM held) AND NOT other.lease_only
            AND other.locked_under IS NOT DISTINCT FROM pg_postmaster_start_time() AS free
    ) AS lock
    WHERE other.alive AND other.id <> %(session)s
), sentenced AS MATERIALIZED (
    SELECT other.id, judged.free, judged.verdict
    FROM worker_sessions AS other JOIN judged ON judged.id = other.id
    WHERE other.alive
        -- on the newest version of the row: another sweep or the owner may have been quicker
        AND CASE judged.verdict
            WHEN 'its lease ran out' THEN other.lease_until < now()
            WHEN 'its connection is gone' THEN other.suspect_since <= now() - %(suspicion)s * interval '1 second'
            ELSE judged.free <> (other.suspect_since IS NOT NULL)
        END
    ORDER BY other.id
    -- a row that is locked is being renewed by its owner or marked by another sweep: waiting here could only deadlock
    FOR NO KEY UPDATE OF other SKIP LOCKED
), marked AS (
    UPDATE worker_sessions AS other
    SET alive = sentenced.verdict IS NULL,
        dead_reason = sentenced.verdict,
        suspect_since = CASE WHEN sentenced.free THEN coalesce(other.suspect_since, now()) END
    FROM sentenced
    WHERE other.id = sentenced.id
    RETURNING other.alive
), quiet AS MATERIALIZED (
    SELECT judged.id
    FROM judged JOIN held USING (id) CROSS JOIN pg_stat_get_activity(held.pid) AS activity
    WHERE (SELECT random() * count(*) < 10 FROM held)
        AND activity.state = 'idle' AND activity.state_change BETWEEN
        now() - (%(user_timeout)s + 2) * interval '1 second' AND now() - %(user_timeout)s / 2 * interval '1 second'
), due AS MATERIALIZED (
    SELECT id, nextval('background_jobs_position_seq') AS position
    FROM (
        SELECT id FROM background_jobs
        WHERE run_at <= now() AND %(stage)s
        ORDER BY run_at
        LIMIT 10000
        FOR UPDATE SKIP LOCKED
    ) AS ripe
), staged AS (
    UPDATE background_jobs AS job
    SET run_at = NULL,
        position = due.position,
        queue = coalesce(job.queue, (%(declared_queues)s::text[])[array_position(%(job_types)s::text[], job.job_type)])
    FROM due
    WHERE job.id = due.id AND job.id = ANY(ARRAY(SELECT id FROM due))
    RETURNING job.queue, job.priority, job.position
), homeless AS MATERIALIZED (
    SELECT id, nextval('background_jobs_position_seq') AS position
    FROM (
        SELECT job.id
        FROM background_jobs AS job
        WHERE job.id = ANY(ARRAY(
            SELECT found.id
            FROM unnest(CASE WHEN %(stage)s THEN %(job_types)s::text[] END) AS known (job_type)
            -- type by type: what nobody here knows may be millions, and is not to be read
            CROSS JOIN LATERAL (
                SELECT job.id, job.priority, job.position
                FROM background_jobs AS job
                WHERE job.job_type = known.job_type AND job.queue IS NULL AND job.run_at IS NULL AND job.session_id IS NULL
                ORDER BY job.priority DESC, job.position
                LIMIT 10000
            ) AS found
            ORDER BY found.priority DESC, found.position
            LIMIT 10000
        -- still so, now that it is locked; in words that no other index than the primary key fits
        )) AND num_nonnulls(job.queue, job.run_at, job.session_id) = 0
        ORDER BY job.priority DESC, job.position
        -- here, and not where they are looked for: that is so many of each type
        FOR UPDATE SKIP LOCKED
    ) AS lost
), homed AS (
    UPDATE background_jobs AS job
    SET queue = (%(declared_queues)s::text[])[array_position(%(job_types)s::text[], job.job_type)],
        position = homeless.position
    FROM homeless
    WHERE job.id = homeless.id AND job.id = ANY(ARRAY(SELECT id FROM homeless))
    RETURNING job.queue, job.priority, job.position
), woken AS MATERIALIZED (
    SELECT queue, priority, min(position) AS position, workers_notify(queue, priority, min(position))
    FROM (SELECT * FROM staged UNION ALL SELECT * FROM homed) AS moved
    WHERE queue IS NOT NULL
    GROUP BY queue, priority
)
SELECT 'probed' AS what, pg_notify(workers_channel(), %(probe)s::text)::text AS queue, NULL::smallint AS priority, NULL::bigint AS position
WHERE %(probe)s::text IS NOT NULL
UNION ALL
SELECT 'alive', NULL, NULL, NULL
WHERE EXISTS (
    SELECT FROM worker_sessions
    WHERE id = %(session)s AND alive AND extract(epoch FROM started_at) = %(started)s::numeric
        -- this is from the snapshot: one that somebody has just marked dead is not renewed
        AND (EXISTS (SELECT FROM renewed) OR NOT (%(renew)s AND lease_until < now() + %(lease)s * interval '0.67 second'))
)
UNION ALL
SELECT 'rescue', NULL, NULL, NULL
WHERE EXISTS (SELECT FROM worker_sessions WHERE NOT alive) OR EXISTS (SELECT FROM marked WHERE NOT alive)
UNION ALL
SELECT 'silent', NULL, NULL, NULL
WHERE EXISTS (SELECT FROM judged WHERE free AND verdict IS NULL) OR EXISTS (SELECT FROM quiet)
UNION ALL
SELECT 'more', NULL, NULL, NULL
WHERE 10000 IN ((SELECT count(*) FROM due), (SELECT count(*) FROM homeless))
UNION ALL
SELECT 'moved', NULL, NULL, (SELECT count(*) FROM due) + (SELECT count(*) FROM homeless)
UNION ALL
SELECT 'wake', queue, priority, position FROM woken
UNION ALL
SELECT DISTINCT 'suspects', job.queue, NULL::smallint, NULL::bigint
FROM background_jobs AS job
WHERE job.crashes > 0 AND job.session_id IS NULL
    AND job.run_at IS NULL AND job.queue = ANY(%(queues)s::text[]) AND job.job_type = ANY(%(job_types)s::text[])
