WITH failed AS (
    SELECT id FROM background_jobs WHERE retries > 0
    UNION ALL
    SELECT id FROM dead_jobs
)
SELECT (SELECT count(*) FROM failed), ARRAY(SELECT id FROM failed ORDER BY id LIMIT %(limit)s)
