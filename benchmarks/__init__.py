"""How fast it is, how near to what the same server and driver can do at all, and whether it stays so.

    python -m benchmarks [NAME] [--json] [--quick] [--uvloop] [--peers] [--database-url URL]

Each benchmark measures its limit in the same run, in pairs that take turns: the bare SQL through psycopg with the same
durability and no library around it, or the same work without the burden that must not matter. The ratio of a pair says more
than a rate, because a busy machine slows down both of its sides. Each run counts that every job ran exactly once.

`python -m benchmarks --help` says what each figure means.
"""
