-- The migration of the next version: it changes two tables that runners and producers use, and a function that runners call.

-- With a default that is a constant no row is written anew.
ALTER TABLE background_jobs ADD COLUMN origin text NOT NULL DEFAULT 'old';
ALTER TABLE worker_sessions ADD COLUMN release text NOT NULL DEFAULT 'old';

-- None of the rows that are there is in it: it is built at once, while the tables are taken. Claims do not change what it mentions.
CREATE INDEX background_jobs_origin ON background_jobs (origin, id) WHERE origin <> 'old';

-- Its name, arguments and result stay: whoever calls it meanwhile, or has prepared a call, does not notice.
CREATE SEQUENCE workers_completions;
DO $$
BEGIN
    EXECUTE regexp_replace(
        pg_get_functiondef('workers_complete'::regproc), '\mBEGIN\M', 'BEGIN PERFORM nextval(''workers_completions'');');
END
$$;
