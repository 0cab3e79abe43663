-- Known job types that wait in queues this runner does not work. Queues are found by skipping from one to the next in the
-- fetch index, and only the first rows of each are looked at: this is for a warning, not for a count.
WITH RECURSIVE waiting AS (
    (SELECT queue FROM background_jobs WHERE run_at IS NULL AND queue IS NOT NULL AND crashes = 0 ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (
        SELECT job.queue FROM background_jobs AS job
        WHERE job.run_at IS NULL AND job.queue > waiting.queue AND job.crashes = 0
        ORDER BY job.queue LIMIT 1
    )
    FROM waiting
    WHERE waiting.queue IS NOT NULL
)
SELECT DISTINCT first.job_type, waiting.queue
FROM waiting
CROSS JOIN LATERAL (
    SELECT job.job_type FROM background_jobs AS job
    WHERE job.queue = waiting.queue AND job.run_at IS NULL AND job.crashes = 0
    ORDER BY job.priority DESC, job.position LIMIT 200
) AS first
WHERE waiting.queue <> ALL(%(queues)s::text[]) AND first.job_type = ANY(%(job_types)s::text[])
