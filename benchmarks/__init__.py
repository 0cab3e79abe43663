"""How fast it is, and how near to what the same server and driver can do at all.

    python -m benchmarks NAME [--json] [--quick]

Each benchmark measures the physical limit in the same run (the bare SQL through psycopg, with the same durability and no
library around it), in pairs that take turns, and counts that every job ran exactly once.
"""
