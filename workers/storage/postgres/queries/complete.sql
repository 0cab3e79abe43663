-- Delete finished jobs. Guarded by session and token, each id with its own: a row that was taken away is not there.
--
-- `ids` rises, so width_bucket finds an id's place, and with it its token, by binary search. A join with unnest would do the
-- same, but leaves the planner the choice to read the whole table when its statistics are old; this is always the primary key.
-- Which ids were deleted is worth a reply only when some were not.
WITH done AS (
    DELETE FROM background_jobs
    WHERE id = ANY(%(ids)s::bigint[])
        AND session_id = %(session)s
        AND claim_token = (%(tokens)s::bigint[])[width_bucket(id, %(ids)s::bigint[])]
    RETURNING id
), forgotten AS (
    DELETE FROM worker_claims WHERE session_id = %(session)s AND token = ANY(%(closed)s::bigint[])
)
SELECT CASE WHEN count(*) < cardinality(%(ids)s::bigint[]) THEN coalesce(array_agg(id), '{}') END FROM done
