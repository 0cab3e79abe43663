-- Ordinary jobs, for each priority, highest first, from the position at which its last scan ended. While any transaction
-- holds an old snapshot, the index entries of deleted rows stay, and a scan from the beginning walks them all; a start behind
-- them skips them. Such a hint is never a truth (sequence order is not commit order), so trailing and thorough scans follow.
SELECT found.id
FROM unnest(%(priorities)s::smallint[], %(positions)s::bigint[]) AS hint (priority, position)
CROSS JOIN LATERAL (
    SELECT job.id
    FROM background_jobs AS job
    WHERE job.queue = %(queue)s::text
        AND job.priority = hint.priority
        AND job.run_at IS NULL
        AND job.position >= hint.position
        AND job.session_id IS NULL
        AND job.crashes = 0
        AND job.job_type = ANY(%(job_types)s::text[])
    ORDER BY job.position
    LIMIT %(limit)s::integer
    FOR UPDATE SKIP LOCKED
) AS found
WHERE EXISTS (SELECT FROM live)
LIMIT %(limit)s::integer
