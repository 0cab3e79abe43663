-- Deduplicated jobs, one or many: NULL in place of an id where an identical job waits. The loop and its lock
-- are in the function, so that every producer goes through the same ones.
SELECT enqueued.id
FROM workers_enqueue_deduplicated(
    %(job_type)s::text, %(data)s::text[], CAST(%(priority)s AS smallint), %(queue)s::text,
    workers_run_at(%(run_at)s::timestamptz, %(delay)s::float8)
) AS enqueued (ordinal, id)
ORDER BY enqueued.ordinal
