-- Four group roles with no more than they need, and the migrator as owner of everything. Not a migration: safe to repeat, and
-- to be repeated after each one. It works on the current schema. Another prefix than `workers`:
--   SELECT set_config('workers.role_prefix', 'shop', false)
-- What each role may do is told in docs/security.md; tests/storage/test_postgres_roles_rights.py compares it with the catalog.
--
-- From `pinned` on nothing is found that stands in the schema. A member of the migrator may put functions there that fit a
-- call better than PostgreSQL's own, format(text, text) say, and who repeats this may be a superuser.
DO $$
DECLARE
    path      text := current_setting('search_path');
    schema    text := current_schema();
    pinned    text := set_config('search_path', 'pg_catalog, pg_temp', true);
    prefix    text := coalesce(nullif(current_setting('workers.role_prefix', true), ''), 'workers');
    producer  text := prefix || '_enqueue';
    worker    text := prefix || '_worker';
    reader    text := prefix || '_readonly';
    migrator  text := prefix || '_migrator';
    tables    text[] := '{background_jobs, worker_sessions, worker_claims, dead_jobs, archived_jobs, workers_migrations}';
    -- of these, the last two run as their owner
    for_producers text[] := '{workers_channel, workers_notify, workers_run_at, workers_enqueue, workers_enqueue_deduplicated}';
    for_workers   text[] := '{workers_lock_class, workers_dedup_key, workers_complete}';
    for_nobody    text[] := '{workers_check_jobs}';
    place         regnamespace := quote_ident(schema)::regnamespace;
    other         text := (SELECT min(tableowner) FROM pg_tables WHERE schemaname = schema
        AND tablename = ANY(tables) AND tableowner <> migrator AND right(tableowner, 9) = '_migrator');
    item          record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = schema AND tablename = 'workers_migrations') THEN
        RAISE 'workers: there are no tables in schema %, the first one of the search_path', schema USING
            ERRCODE = 'undefined_table', HINT = 'Apply the migrations there, or SET search_path.';
    ELSIF prefix COLLATE "C" !~ '^[A-Za-z0-9_.:-]{1,54}$' THEN
        RAISE 'workers: a prefix of roles must be 1 to 54 letters, digits or _ . : -' USING ERRCODE = 'invalid_name';
    -- a function or operator that anybody puts there would be run by those that run as their owner
    ELSIF has_schema_privilege('public', schema, 'CREATE') THEN
        RAISE 'workers: everybody may create objects in schema %', schema USING
            ERRCODE = 'insufficient_privilege', HINT = format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', schema);
    ELSIF other IS NOT NULL THEN
        RAISE 'workers: the tables in schema % belong to %, which would lose them: one prefix per schema', schema, other USING
            ERRCODE = 'object_not_in_prerequisite_state';
    END IF;

    FOR item IN SELECT unnest(ARRAY[producer, worker, reader, migrator]) AS name LOOP
        IF to_regrole(quote_ident(item.name)) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', item.name);
        END IF;
        -- asked first: a member of the migrator need not own the schema to run this again
        IF NOT has_schema_privilege(item.name, schema, 'USAGE') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', schema, item.name);
        END IF;
    END LOOP;
    IF NOT has_schema_privilege(migrator, schema, 'CREATE') THEN
        EXECUTE format('GRANT CREATE ON SCHEMA %I TO %I', schema, migrator);
    END IF;
    -- whoever hands the tables over keeps what an owner may do
    IF NOT pg_has_role(current_user, migrator, 'USAGE') THEN
        EXECUTE format('GRANT %I TO %I', migrator, current_user);
    END IF;

    FOR item IN
        SELECT format('ALTER TABLE %s OWNER TO %I', oid::regclass, migrator) AS command FROM pg_class
        WHERE relnamespace = place AND relname = ANY(tables)
            AND relowner <> quote_ident(migrator)::regrole
        UNION ALL
        SELECT format('ALTER FUNCTION %s OWNER TO %I', oid::regprocedure, migrator) FROM pg_proc
        WHERE pronamespace = place AND proname = ANY(for_producers || for_workers || for_nobody)
            AND proowner <> quote_ident(migrator)::regrole
        UNION ALL
        SELECT format('ALTER DOMAIN %s OWNER TO %I', oid::regtype, migrator) FROM pg_type
        WHERE typnamespace = place AND typname = 'workers_payload' AND typowner <> quote_ident(migrator)::regrole
    LOOP
        EXECUTE item.command;
    END LOOP;

    -- Producers: the columns that are theirs, and the numbers that id and position are drawn from. No SELECT of anything.
    EXECUTE format(
        'GRANT INSERT (job_type, data, priority, queue, run_at) ON %I.background_jobs TO %I', schema, producer);
    EXECUTE format(
        'GRANT USAGE ON SEQUENCE %1$I.background_jobs_id_seq, %1$I.background_jobs_position_seq TO %2$I', schema, producer);

    -- Runners: rows, never tables. They add to the archive, and take nothing out.
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE, DELETE
            ON %1$I.background_jobs, %1$I.worker_sessions, %1$I.worker_claims, %1$I.dead_jobs TO %2$I', schema, worker);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %I.archived_jobs TO %I', schema, worker);
    EXECUTE format('GRANT SELECT ON %I.workers_migrations TO %I', schema, worker);
    EXECUTE format(
        'GRANT USAGE ON SEQUENCE
            %1$I.background_jobs_id_seq, %1$I.background_jobs_position_seq, %1$I.worker_sessions_id_seq TO %2$I',
        schema, worker);

    FOR item IN
        SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', string_agg(oid::regprocedure::text, ', '), grantee) AS command
        FROM (VALUES (producer, for_producers), (worker, for_producers || for_workers)) AS given (grantee, names)
        JOIN pg_proc ON pronamespace = place AND proname = ANY(names)
        GROUP BY grantee
    LOOP
        EXECUTE item.command;
    END LOOP;

    -- Dashboards and people.
    FOR item IN SELECT unnest(tables) AS name LOOP
        EXECUTE format('GRANT SELECT ON %I.%I TO %I', schema, item.name, reader);
    END LOOP;

    -- To put payloads in takes no right on their type; to make a table with such a column does, a temporary one too, and that
    -- would be in the way of a migration. Not for producers, nor for those who only know the schema.
    EXECUTE format('REVOKE USAGE ON TYPE %I.workers_payload FROM PUBLIC', schema);
    EXECUTE format('GRANT USAGE ON TYPE %I.workers_payload TO %I, %I', schema, worker, reader);

    PERFORM set_config('search_path', path, true);
END
$$;
