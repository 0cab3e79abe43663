-- Ordinary jobs of the whole queue.
SELECT job.id
FROM background_jobs AS job
WHERE job.queue = %(queue)s::text
    AND job.run_at IS NULL
    AND job.session_id IS NULL
    AND job.crashes = 0
    AND job.job_type = ANY(%(job_types)s::text[])
    AND EXISTS (SELECT FROM live)
ORDER BY job.priority DESC, job.position
LIMIT %(limit)s::integer
FOR UPDATE SKIP LOCKED
