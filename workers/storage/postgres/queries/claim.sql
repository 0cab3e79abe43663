-- A claim: takes up to `limit` available jobs of `queue` for `session`, under `token`. One row of NULLs: the session is not
-- alive, and takes nothing. SCAN is one of scan_*.sql: which jobs, in their order. Queue and token, which the caller knows, do not
-- come back: each column of a batch costs both ends.
--
-- live     a claim on its way while its session was reaped takes nothing. KEY SHARE keeps the session's row from being removed
--          before this claim is visible to the sweep, and does not conflict with the renewal of its lease.
-- noted    one row a claim, from which a session's jobs are found without an index on them. On conflict: a second scan adds
--          to the same claim.
--
-- Run with enable_seqscan, enable_bitmapscan and jit off, so that the planner walks an index, and with plan_cache_mode =
-- force_generic_plan where it is prepared. A queue is full one minute and empty the next, and its statistics are of some other
-- minute. Left to itself PostgreSQL takes what it believes to be a handful of rows, reads and sorts the 300,000 that are there
-- (80 ms for each claim instead of 0.3), or goes on with a plan that it made and kept when the table was empty. The only plan
-- is to be the ordered scan that stops after `limit` rows.
WITH live AS MATERIALIZED (
    SELECT FROM worker_sessions WHERE id = %(session)s::bigint AND alive FOR KEY SHARE
), picked AS MATERIALIZED (
    SELECT ARRAY(
        SCAN
    ) AS ids
), noted AS (
    INSERT INTO worker_claims (session_id, token, ids)
    SELECT %(session)s::bigint, %(token)s::bigint, ids FROM picked WHERE ids <> '{}'
    ON CONFLICT (session_id, token) DO UPDATE SET ids = worker_claims.ids || excluded.ids
), taken AS (
    UPDATE background_jobs AS job
    SET session_id = %(session)s::bigint, claim_token = %(token)s::bigint, dedup_key = NULL
    WHERE job.id = ANY((SELECT ids FROM picked)::bigint[])
    RETURNING job.id, job.job_type, job.priority, job.data::text, job.retries, job.crashes, job.deduplicated, job.position
)
SELECT * FROM taken
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE NOT EXISTS (SELECT FROM live)
