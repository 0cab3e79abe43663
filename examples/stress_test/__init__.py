"""A monster-collecting game that puts `workers` under load and counts every job: `python -m examples.stress_test`.

Read it in this order:

game.py         the five job types, and what runs them (the part that a user of the library writes)
produce.py      requests of a web application, each of which enqueues in its own transaction
runner.py       a runner as a process of its own
fleet.py        starts these processes, listens to them, kills and replaces them
ledger.py       what was asked for, against what the database says became of it
play.py         one run, from the first request to the last job
display.py      the live view
report.py       the table at the end, and --json
"""
