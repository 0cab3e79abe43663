"""The running half: a tree of tasks around one session.

    supervisor    the tree itself, and the order in which it is taken down
    session       the control thread: lease, sweep, staging, watching the loop
    listening     wake-ups by notification
    claimer       one a queue: takes jobs from the store
    work_queue    one a queue: claimed jobs on their way to the workers; `demand` says how many to hold in advance
    crew          the workers of all queues, and how they are waited for at the end
    worker        many a queue: runs one job at a time, an `attempt`, through the `executor`, which is `driving` its code
    completer     one a runner: writes outcomes
    empty         for `shutdown_when_queue_empty`
    ledger        what this runner has in its hands

It uses the storage port, never an engine.
"""
