"""A small shop, which sends receipts in the background: `python -m examples.webapp`.

app.py enqueues in each request's transaction and runs the jobs in the same process. shop.py is the shop, and its job.
"""
