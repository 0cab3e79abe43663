-- One ordinary job, due at once, announced in the same statement: workers_notify written out, as PostgreSQL can't inline it,
-- and nothing else that a call would be needed for. This is what most enqueues are.
INSERT INTO background_jobs AS job (job_type, data, priority, queue)
VALUES (%(job_type)s::text, %(data)s::jsonb, %(priority)s::smallint, %(queue)s::text)
RETURNING
    job.id,
    CASE WHEN current_setting('workers.notify', true) IS DISTINCT FROM 'off'
        THEN pg_notify(workers_channel(), job.position || ' ' || job.priority || ' ' || job.queue) END
