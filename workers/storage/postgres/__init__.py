"""PostgreSQL, the first engine."""
