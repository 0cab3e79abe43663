-- Jobs that wait where nobody may be looking, for warnings, not for a count: not taken for 10 s or longer, as another runner,
-- or a newer one that is just being started, would have begun by then, and
--
-- not worked  known job types in queues that no runner works
-- not known   job types that this runner does not know, in its queues, in those that no runner works, or in none
--
-- Queues and types are found by skipping from one to the next in an index, and only the first rows of each queue are looked
-- at. What nobody takes stays there, in front. Names may be a producer's: a thousand of each are enough, and a hundred answers.
WITH RECURSIVE queues AS (
    (
        SELECT queue, 1 AS number FROM background_jobs
        WHERE run_at IS NULL AND queue IS NOT NULL AND crashes = 0 ORDER BY queue LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT job.queue FROM background_jobs AS job
        WHERE job.run_at IS NULL AND job.queue > queues.queue AND job.crashes = 0
        ORDER BY job.queue LIMIT 1
    ), number + 1
    FROM queues
    WHERE queues.queue IS NOT NULL AND number < 1000
), homeless AS (
    (SELECT job_type, 1 AS number FROM background_jobs WHERE run_at IS NULL AND queue IS NULL ORDER BY job_type LIMIT 1)
    UNION ALL
    SELECT (
        SELECT job.job_type FROM background_jobs AS job
        WHERE job.run_at IS NULL AND job.queue IS NULL AND job.job_type > homeless.job_type
        ORDER BY job.job_type LIMIT 1
    ), number + 1
    FROM homeless
    WHERE homeless.job_type IS NOT NULL AND number < 1000
), waiting AS (
    SELECT first.job_type, queues.queue, first.created_at, first.session_id
    FROM queues
    CROSS JOIN LATERAL (
        SELECT job.job_type, job.created_at, job.session_id FROM background_jobs AS job
        WHERE job.queue = queues.queue AND job.run_at IS NULL AND job.crashes = 0
        ORDER BY job.priority DESC, job.position LIMIT 100
    ) AS first
    UNION ALL
    SELECT homeless.job_type, '', first.created_at, NULL
    FROM homeless
    CROSS JOIN LATERAL (
        SELECT job.created_at FROM background_jobs AS job
        WHERE job.job_type = homeless.job_type AND job.queue IS NULL AND job.run_at IS NULL
        ORDER BY job.priority DESC, job.position LIMIT 1
    ) AS first
)
SELECT DISTINCT job_type, queue, job_type = ANY(%(job_types)s::text[]) AS known
FROM waiting
WHERE session_id IS NULL AND created_at < now() - interval '10 seconds' AND CASE
    WHEN queue = '' OR queue = ANY(%(queues)s::text[]) THEN job_type <> ALL(%(job_types)s::text[])
    ELSE NOT EXISTS (SELECT FROM worker_sessions AS other WHERE other.alive AND queue = ANY(other.queues))
END
LIMIT 100
