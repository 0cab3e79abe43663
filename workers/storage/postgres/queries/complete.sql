-- Finished jobs: see the function in the migrations. `ids` rises.
SELECT workers_complete(%(session)s::bigint, %(ids)s::bigint[], %(tokens)s::bigint[], %(closed)s::bigint[])
