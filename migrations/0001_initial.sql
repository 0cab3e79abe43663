-- The tables of `workers`. Everything is created in the current schema, with unqualified names.

-- ---------------------------------------------------------------------------------------------- waiting and running jobs
-- The first seven columns are the original's, by name and meaning. A bare
--   INSERT INTO background_jobs (job_type, data, priority) VALUES (...)
-- is a valid job: whoever knows the job type fills in its queue.
--
-- state        derived, never stored:  running    session_id IS NOT NULL
--                                      available  run_at IS NULL
--                                      scheduled  run_at IS NOT NULL, retries = 0
--                                      retryable  run_at IS NOT NULL, retries > 0
-- data         see workers_payload
-- retries      attempts that failed; counted when an outcome is written
-- position     the order within a priority: drawn at insert, and anew whenever the row becomes available again, so that a
--              scan which starts where the last one ended does not miss it
-- run_at       NULL when due. Rows that wait for a time are not in the fetch index at all
-- dedup_key    set while a deduplicated job waits, NULL while it runs: a running job does not block an identical new one
CREATE SEQUENCE background_jobs_position_seq AS bigint;

-- Bounded as it is written out, which is how claims fetch it: 1e131000 is a few bytes in here and 131,000 there, and one row that
-- can't be written out would fail every claim that meets it. A CHECK of the table would write each payload out at each UPDATE, a
-- claim's too; that of a domain is asked where a payload is put in.
CREATE DOMAIN workers_payload AS jsonb
    CONSTRAINT workers_payload_size CHECK (octet_length(VALUE::text) <= 16777216);

CREATE TABLE background_jobs (
    id           bigserial   PRIMARY KEY,
    job_type     text        NOT NULL CHECK (octet_length(job_type) BETWEEN 1 AND 400),
    data         workers_payload NOT NULL,
    retries      integer     NOT NULL DEFAULT 0,
    last_retry   timestamptz NOT NULL DEFAULT now(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    priority     smallint    NOT NULL DEFAULT 0,
    crashes      smallint    NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    deduplicated boolean     NOT NULL DEFAULT false,
    position     bigint      NOT NULL DEFAULT nextval('background_jobs_position_seq'),
    queue        text        CHECK (octet_length(queue) BETWEEN 1 AND 400),
    run_at       timestamptz,
    dedup_key    bytea,
    session_id   bigint,
    claim_token  bigint,
    last_error   text
) WITH (
    -- a claim rewrites the row once, a little larger: room for all of them on the page keeps those updates heap-only,
    -- so that no index is touched. (At 60, 63% of a batch are, at 45 all: a third less time and WAL for each job.)
    fillfactor = 45,
    -- a queue is a table that turns over completely: vacuum by count, not by share, and without pauses
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0,
    -- a queue uses its pages again; giving back the last ones takes an ACCESS EXCLUSIVE lock, just when it was busy
    vacuum_truncate = off
);

ALTER SEQUENCE background_jobs_position_seq OWNED BY background_jobs.position;

-- Some encodings can hold what no client can be sent: one such row would fail every claim that meets it, and housekeeping.
DO $$
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        ALTER DOMAIN workers_payload ADD CONSTRAINT workers_payload_encoding
            CHECK (convert_to(VALUE::text, 'UTF8') IS NOT NULL);
        ALTER TABLE background_jobs ADD CONSTRAINT background_jobs_encoding
            CHECK (convert_to(job_type || coalesce(queue, ''), 'UTF8') IS NOT NULL);
    END IF;
END
$$;

-- No index here, and no predicate, mentions a column that the claim of an ordinary row changes. No row is in two of the first
-- four, and each query fits one of them alone: which one to take is never left to statistics.
CREATE INDEX background_jobs_fetch ON background_jobs (queue, priority DESC, position)
    WHERE run_at IS NULL AND queue IS NOT NULL AND crashes = 0;
CREATE INDEX background_jobs_suspect ON background_jobs (queue, priority DESC, position)
    WHERE run_at IS NULL AND queue IS NOT NULL AND crashes > 0;
CREATE INDEX background_jobs_homeless ON background_jobs (job_type, priority DESC, position)
    WHERE run_at IS NULL AND queue IS NULL;
CREATE INDEX background_jobs_due ON background_jobs (run_at) WHERE run_at IS NOT NULL;
CREATE UNIQUE INDEX background_jobs_dedup ON background_jobs (dedup_key) WHERE dedup_key IS NOT NULL;

-- ------------------------------------------------------------------------------------------------------ who is working
-- One row per running Runner. `id` is never used twice. While it lives, the runner's control connection holds the advisory
-- lock (workers_lock_class(), id). `suspect_since`: a sweep found that lock free. `lease_only`: it has no lock for now: its
-- connection goes through a pooler, or somebody else holds it. `locked_under`: the start of the server on which the lock was taken:
-- on another one, such as a standby that was promoted, that it is free says nothing.
CREATE SEQUENCE worker_sessions_id_seq AS integer NO CYCLE;

CREATE TABLE worker_sessions (
    id            bigint      PRIMARY KEY DEFAULT nextval('worker_sessions_id_seq'),
    name          text        NOT NULL,
    queues        text[]      NOT NULL DEFAULT '{}',
    alive         boolean     NOT NULL DEFAULT true,
    lease_only    boolean     NOT NULL DEFAULT false,
    locked_under  timestamptz,
    lease_until   timestamptz NOT NULL,
    suspect_since timestamptz,
    dead_reason   text,
    started_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

ALTER SEQUENCE worker_sessions_id_seq OWNED BY worker_sessions.id;

-- From a session to its rows without an index on them: one row per claim, written by the same statement.
CREATE TABLE worker_claims (
    session_id bigint      NOT NULL,
    token      bigint      NOT NULL,
    ids        bigint[]    NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, token)
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

-- -------------------------------------------------------------------------------------------------- jobs that have ended
CREATE TABLE dead_jobs (
    id           bigint      PRIMARY KEY,
    job_type     text        NOT NULL,
    data         jsonb       NOT NULL,
    retries      integer     NOT NULL,
    last_retry   timestamptz NOT NULL,
    created_at   timestamptz NOT NULL,
    priority     smallint    NOT NULL,
    crashes      smallint    NOT NULL,
    deduplicated boolean     NOT NULL,
    queue        text,
    reason       text        NOT NULL,
    last_error   text,
    died_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE archived_jobs (
    id           bigint      PRIMARY KEY,
    job_type     text        NOT NULL,
    data         jsonb       NOT NULL,
    retries      integer     NOT NULL,
    last_retry   timestamptz NOT NULL,
    created_at   timestamptz NOT NULL,
    priority     smallint    NOT NULL,
    crashes      smallint    NOT NULL,
    deduplicated boolean     NOT NULL,
    queue        text,
    state        text        NOT NULL CHECK (state IN ('completed', 'cancelled')),
    reason       text,
    last_error   text,
    finished_at  timestamptz NOT NULL DEFAULT now()
);

-- ------------------------------------------------------------------------------------------------------------ functions
-- NOTIFY channels and advisory locks belong to the database: both are keyed by the schema.
DO $$
BEGIN
    EXECUTE format(
        'CREATE FUNCTION workers_channel() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS %L',
        format('SELECT %L::text', 'workers_' || left(md5(current_schema()), 16))
    );
    EXECUTE format(
        'CREATE FUNCTION workers_lock_class() RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS %L',
        format('SELECT (%s)::integer', hashtext('workers ' || current_schema()))
    );
END
$$;

-- "position priority queue". ALTER DATABASE ... SET workers.notify = 'off' leaves everything to polling: NOTIFY takes a
-- database-wide lock at commit, and rules out two-phase transactions.
CREATE FUNCTION workers_notify(queue text, priority smallint, "position" bigint) RETURNS void LANGUAGE sql AS $$
    SELECT CASE WHEN queue IS NOT NULL AND current_setting('workers.notify', true) IS DISTINCT FROM 'off'
        THEN pg_notify(workers_channel(), "position" || ' ' || priority || ' ' || queue) END
$$;

-- When a job is due, NULL for now, by the database's clock. Capped: an interval that overflows would refuse the job.
-- One expression without a FROM, so that PostgreSQL inlines it.
CREATE FUNCTION workers_run_at(run_at timestamptz, delay double precision) RETURNS timestamptz LANGUAGE sql AS $$
    SELECT CASE
        WHEN run_at > clock_timestamp() THEN run_at
        WHEN run_at IS NULL AND delay > 0 THEN clock_timestamp() + least(delay, 3.2e9) * interval '1 second'
    END
$$;

-- What makes two jobs identical: type, payload and priority, as in the original. Made here, so that every producer agrees.
CREATE FUNCTION workers_dedup_key(job_type text, data jsonb, priority smallint) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(convert_to(job_type || chr(31) || priority || chr(31) || data::text, 'UTF8'))
$$;

-- What each enqueue function refuses, by itself: it runs as its owner, for callers who may do nothing else. Depth is looked for
-- only where there are more than 100 brackets. The names' pattern is that of workers/config.py, the bounds are codec.py's.
CREATE FUNCTION workers_check_jobs(job_type text, queue text, data text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF $1 IS NULL OR $1 COLLATE "C" !~ '^[A-Za-z0-9_.:-]{1,100}$' THEN
        RAISE 'workers: job_type must be 1 to 100 letters, digits or _ . : -' USING ERRCODE = 'check_violation';
    ELSIF $2 COLLATE "C" !~ '^[A-Za-z0-9_.:-]{1,100}$' THEN
        RAISE 'workers: queue must be 1 to 100 letters, digits or _ . : -' USING ERRCODE = 'check_violation';
    ELSIF EXISTS (SELECT FROM unnest($3) AS given WHERE octet_length(given) > 1048576) THEN
        RAISE 'workers: data is over 1 MiB; store it elsewhere and pass a reference' USING ERRCODE = 'check_violation';
    ELSIF EXISTS (
        SELECT FROM unnest($3) AS given
        WHERE CASE WHEN left(given, 1) = '{' THEN false ELSE given IS NULL OR given COLLATE "C" !~ '^[[:space:]]*[{]' END
    ) THEN
        RAISE 'workers: data must be a JSON object' USING ERRCODE = 'check_violation';
    ELSIF EXISTS (
        SELECT FROM unnest($3) AS given
        WHERE CASE WHEN octet_length(given) <= 200 OR length(given) - length(translate(given, '{[', '')) <= 100 THEN false
            ELSE jsonb_path_exists(given::jsonb, 'strict $.**{100} ? (@.type() == "object" || @.type() == "array")') END
    ) THEN
        RAISE 'workers: data is nested deeper than 100 levels' USING ERRCODE = 'check_violation';
    END IF;
END
$$;

-- Jobs of which an identical one may wait. For each of `data`, in order, its id, or NULL where an identical job waits.
--
-- A unique index alone would lose work: T1 changes data and enqueues, is told that an identical job waits, a worker runs
-- that job on the old data, T1 commits. So the waiting row is locked until the caller's transaction ends, and workers skip
-- locked rows; at its end the job is announced once more, in its own queue, for those who did. If it began to run in the
-- meantime, the insert is tried again. Keys are visited in order, so that two batches that share keys do not deadlock. For the
-- planner's settings see workers_complete.
CREATE FUNCTION workers_enqueue_deduplicated(
    job_type text, data text[], priority smallint, queue text, run_at timestamptz
) RETURNS TABLE (ordinal bigint, id bigint) LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    item      record;
    ids       bigint[];
    positions bigint[];
    lowest    bigint;
    last_key  bytea;
    other     record;
    queues    text[];
    places    bigint[];
BEGIN
    IF $3 IS NULL THEN
        RAISE 'workers: priority must be between -32768 and 32767' USING ERRCODE = 'check_violation';
    END IF;
    PERFORM workers_check_jobs($1, $4, $2);
    SELECT array_agg(nextval('background_jobs_id_seq')), array_agg(nextval('background_jobs_position_seq'))
    INTO ids, positions FROM generate_series(1, cardinality($2));
    FOR item IN
        SELECT given.ordinal, given.data::jsonb AS data, workers_dedup_key($1, given.data::jsonb, $3) AS key
        FROM unnest($2) WITH ORDINALITY AS given (data, ordinal)
        ORDER BY 3, 1
    LOOP
        ordinal := item.ordinal;
        id := NULL;
        WHILE item.key IS DISTINCT FROM last_key LOOP
            INSERT INTO background_jobs AS new (id, job_type, data, priority, queue, run_at, position, deduplicated, dedup_key)
            VALUES (ids[item.ordinal], $1, item.data, $3, $4, $5, positions[item.ordinal], true, item.key)
            ON CONFLICT (dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING
            RETURNING new.id INTO id;
            IF FOUND THEN
                IF $5 IS NULL THEN
                    lowest := least(lowest, positions[item.ordinal]);
                END IF;
                EXIT;
            END IF;
            SELECT waiting.queue, waiting.position, waiting.run_at INTO other
            FROM background_jobs AS waiting WHERE waiting.dedup_key = item.key FOR SHARE;
            IF FOUND THEN
                IF other.run_at IS NULL AND other.queue = $4 THEN
                    lowest := least(lowest, other.position);
                ELSIF other.run_at IS NULL THEN
                    queues := array_append(queues, other.queue);
                    places := array_append(places, other.position);
                END IF;
                EXIT;
            END IF;
        END LOOP;
        last_key := item.key;
        RETURN NEXT;
    END LOOP;
    IF lowest IS NOT NULL THEN
        PERFORM workers_notify($4, $3, lowest);
    END IF;
    IF places IS NOT NULL THEN
        PERFORM workers_notify(told.queue, $3, min(told.position))
        FROM unnest(queues, places) AS told (queue, position)
        GROUP BY told.queue;
    END IF;
END
$$;

-- For any other driver or language: the id, or NULL where an identical deduplicated job waits. Without a queue the one that
-- the job type declares is filled in by a runner that knows it.
CREATE FUNCTION workers_enqueue(
    job_type text, data jsonb DEFAULT '{}', queue text DEFAULT NULL, priority integer DEFAULT 0,
    run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, deduplicated boolean DEFAULT false
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    due timestamptz := workers_run_at($5, extract(epoch FROM $6));
    new bigint;
BEGIN
    IF $4 IS NULL OR $4 NOT BETWEEN -32768 AND 32767 THEN
        RAISE 'workers: priority must be between -32768 and 32767' USING ERRCODE = 'check_violation';
    ELSIF $5 IS NOT NULL AND $6 IS NOT NULL THEN
        RAISE 'workers: give run_at or delay, not both' USING ERRCODE = 'check_violation';
    ELSIF extract(epoch FROM $6) < 0 THEN
        RAISE 'workers: delay must not be negative; leave it out for a job that is due now' USING ERRCODE = 'check_violation';
    END IF;
    IF $7 THEN
        SELECT enqueued.id INTO new
        FROM workers_enqueue_deduplicated($1, ARRAY[$2::text], $4::smallint, $3, due) AS enqueued;
    ELSE
        PERFORM workers_check_jobs($1, $3, ARRAY[$2::text]);
        INSERT INTO background_jobs AS job (job_type, data, priority, queue, run_at)
        VALUES ($1, $2, $4, $3, due)
        RETURNING job.id INTO new;
        IF due IS NULL THEN
            PERFORM workers_notify($3, $4::smallint, currval('background_jobs_position_seq'));
        END IF;
    END IF;
    RETURN new;
END
$$;

-- Deletes finished jobs, guarded by session and token, and forgets the `closed` claims: all of it, or nothing (WK001 where a job
-- is no longer this session's, lock_not_available where somebody else has locked a row). The caller then asks which ones, by
-- complete_unlocked.sql. That is rare, and to return each id would cost a quarter of the statement.
--
-- `ids` rises, so that width_bucket finds an id's place, and with it its token, by binary search.
--
-- A function for the sake of the planner, which is told to walk an index, here and nowhere else: a queue is full one minute and
-- empty the next, and its statistics, and the plans that are kept, are of some other minute. A bitmap would lock rows where they
-- lie, not in the order of their ids as every other statement does: deadlocks.
CREATE FUNCTION workers_complete(session bigint, ids bigint[], tokens bigint[], closed bigint[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off SET lock_timeout = '250ms' AS $$
DECLARE
    deleted bigint;
BEGIN
    DELETE FROM background_jobs AS job
    WHERE job.id = ANY($2) AND job.session_id = $1 AND job.claim_token = $3[width_bucket(job.id, $2)];
    GET DIAGNOSTICS deleted = ROW_COUNT;
    IF deleted < cardinality($2) THEN
        RAISE 'workers: % of % finished jobs are no longer those of session %', cardinality($2) - deleted, cardinality($2), $1
            USING ERRCODE = 'WK001';
    END IF;
    IF $4 <> '{}' THEN
        DELETE FROM worker_claims AS claim WHERE claim.session_id = $1 AND claim.token = ANY($4);
    END IF;
END
$$;

-- --------------------------------------------------------------------------------------------------------------- rights
-- Whoever may enqueue need not be able to read: these two run as their owner. What they name is looked for in this schema
-- alone, whatever the caller's search_path says, and in the caller's temporary tables last.
DO $$
BEGIN
    EXECUTE format(
        'ALTER FUNCTION workers_enqueue(text, jsonb, text, integer, timestamptz, interval, boolean)
            SECURITY DEFINER SET search_path = %I, pg_temp', current_schema());
    EXECUTE format(
        'ALTER FUNCTION workers_enqueue_deduplicated(text, text[], smallint, text, timestamptz)
            SECURITY DEFINER SET search_path = %I, pg_temp', current_schema());
END
$$;

-- By default everybody may call a function. These are for whoever works with the tables: see roles.sql.
REVOKE EXECUTE ON FUNCTION
    workers_channel(), workers_lock_class(), workers_notify(text, smallint, bigint),
    workers_run_at(timestamptz, double precision), workers_dedup_key(text, jsonb, smallint),
    workers_check_jobs(text, text, text[]), workers_enqueue_deduplicated(text, text[], smallint, text, timestamptz),
    workers_enqueue(text, jsonb, text, integer, timestamptz, interval, boolean),
    workers_complete(bigint, bigint[], bigint[], bigint[])
FROM PUBLIC;
