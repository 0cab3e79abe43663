-- Takes all tables for the migrations that follow in the same transaction. Not a migration itself.
--
-- One that changed a table and then waited for the next would wait for runners that wait for the first: a deadlock, at the cost
-- of one of them or its own. So all are taken before any is changed, first the two that a claim takes, in its order. What is not
-- to be had soon is not waited for: all that was taken is given up, so that those who wait for it can go on, and tried again, with
-- twice the patience, until lock_timeout is over. It begins far below deadlock_timeout, and grows for the sake of transactional
-- jobs, which keep background_jobs while they run, and to beyond deadlock_timeout for that of autovacuum, which only then is made to
-- give way. No further, for all tables together: the runners' sessions can't be looked after meanwhile, and give up their
-- connections after 2 s.
--
-- A change of owner (workers.lock_sequences = on) takes the sequences, too, and so does whoever draws from one, until the end of his
-- transaction. Some draw before they take the table (deduplicated jobs, COPY): they may wait for the table while this waits for
-- their sequence. So sequences follow on their table, and are waited for only a moment, far shorter than deadlock_timeout: nobody
-- is made to give way but this. (There is no LOCK for them. To give one to its owner changes nothing, and takes the same lock.)
--
-- (From `pinned` on nothing is found that stands in the schema: see roles.sql.)
DO $$
DECLARE
    path      text := current_setting('search_path');
    schema    text := current_schema();
    pinned    text := set_config('search_path', 'pg_catalog, pg_temp', true);
    items     text[] := '{worker_sessions, worker_sessions_id_seq, background_jobs, background_jobs_id_seq,
        background_jobs_position_seq, worker_claims, dead_jobs, archived_jobs}';
    sequences boolean := coalesce(current_setting('workers.lock_sequences', true), '') = 'on';
    given     text := current_setting('lock_timeout');
    allowed   double precision := (SELECT nullif(setting, '0')::float8 FROM pg_settings WHERE name = 'lock_timeout');
    began     timestamptz := clock_timestamp();
    patience  double precision := 50;
    most      double precision := 1500;
    tried     timestamptz;
    rest      double precision;
    item      record;
BEGIN
    LOOP
        tried := clock_timestamp();
        BEGIN
            FOR item IN
                SELECT CASE relkind WHEN 'S' THEN 50 END AS moment, CASE relkind
                    WHEN 'S' THEN format('ALTER SEQUENCE %I.%I OWNER TO %I', schema, relname, pg_get_userbyid(relowner))
                    ELSE format('LOCK TABLE %I.%I IN ACCESS EXCLUSIVE MODE', schema, relname) END AS command
                FROM pg_class
                WHERE relnamespace = quote_ident(schema)::regnamespace AND relname = ANY(items)
                    AND (relkind = 'r' OR relkind = 'S' AND sequences)
                ORDER BY array_position(items, relname::text)
            LOOP
                rest := least(
                    allowed - 1000 * extract(epoch FROM clock_timestamp() - began),
                    patience - 1000 * extract(epoch FROM clock_timestamp() - tried),
                    item.moment
                );
                PERFORM set_config('lock_timeout', greatest(1, rest)::integer::text, true);
                EXECUTE item.command;
            END LOOP;
            PERFORM set_config('lock_timeout', given, true);
            PERFORM set_config('search_path', path, true);
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF allowed <= 1000 * extract(epoch FROM clock_timestamp() - began) + 1 THEN
                RAISE lock_not_available USING MESSAGE = 'workers: somebody uses the tables';
            END IF;
            patience := least(2 * patience, most);
        END;
    END LOOP;
END
$$;
