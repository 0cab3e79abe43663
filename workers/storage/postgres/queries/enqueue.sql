-- One ordinary job, due at once, announced in the same statement: workers_notify written out, as PostgreSQL can't inline it,
-- and nothing else that a call would be needed for. This is what most enqueues are.
-- CAST: where the driver writes parameters into the text, -32768::smallint would be the negative of a number that is none.
-- currval, here and in the statements beside this one: RETURNING a column takes the right to read it, which producers need not have.
INSERT INTO background_jobs (job_type, data, priority, queue)
VALUES (%(job_type)s::text, %(data)s::jsonb, CAST(%(priority)s AS smallint), %(queue)s::text)
RETURNING
    currval('background_jobs_id_seq'),
    CASE WHEN current_setting('workers.notify', true) IS DISTINCT FROM 'off'
        THEN pg_notify(
            workers_channel(),
            currval('background_jobs_position_seq') || ' ' || CAST(%(priority)s AS smallint) || ' ' || %(queue)s::text
        ) END
