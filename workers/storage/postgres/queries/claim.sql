-- A claim. What it does, and why it is a function, stands in the migrations.
SELECT * FROM workers_claim(
    %(session)s::bigint, %(token)s::bigint, %(queue)s::text, %(job_types)s::text[], %(limit)s::integer,
    %(priorities)s::smallint[], %(positions)s::bigint[], %(suspects)s::integer
)
