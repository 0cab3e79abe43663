-- Takes all tables for the migrations that follow in the same transaction. Not a migration itself.
--
-- One that changed a table and then waited for the next would wait for runners that wait for the first: a deadlock, at the cost
-- of one of them or its own. So all are taken before any is changed, first the two that a claim takes, in its order. What is not
-- to be had soon is not waited for: all that was taken is given up, so that those who wait for it can go on, and tried again, with
-- twice the patience, until lock_timeout is over. It begins far below deadlock_timeout, and grows for the sake of transactional
-- jobs, which keep background_jobs while they run, and to beyond deadlock_timeout for that of autovacuum, which only then is made to
-- give way. No further: the runners' sessions can't be looked after meanwhile, and give up their connections after 2 s.
--
-- (From `pinned` on nothing is found that stands in the schema: see roles.sql.)
DO $$
DECLARE
    path     text := current_setting('search_path');
    schema   text := current_schema();
    pinned   text := set_config('search_path', 'pg_catalog, pg_temp', true);
    tables   text[] := '{worker_sessions, background_jobs, worker_claims, dead_jobs, archived_jobs}';
    given    text := current_setting('lock_timeout');
    allowed  double precision := (SELECT nullif(setting, '0')::float8 FROM pg_settings WHERE name = 'lock_timeout');
    began    timestamptz := clock_timestamp();
    patience double precision := 50;
    most     double precision := 1500;
    rest     double precision;
    item     record;
BEGIN
    LOOP
        BEGIN
            FOR item IN
                SELECT format('LOCK TABLE %I.%I IN ACCESS EXCLUSIVE MODE', schemaname, tablename) AS command
                FROM pg_tables WHERE schemaname = schema AND tablename = ANY(tables)
                ORDER BY array_position(tables, tablename::text)
            LOOP
                rest := allowed - 1000 * extract(epoch FROM clock_timestamp() - began);
                rest := greatest(1, least(rest, patience));
                PERFORM set_config('lock_timeout', rest::integer::text, true);
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
