"""What happens to a connection: the statements that it runs, and how its transactions really end.

`execution` sees statements before and after they run. `dialect_observer` sees the dialect's own
calls, such as ``do_commit``. `observed_transaction` asks the driver (`drivers`) what
they did. `transaction_control` finds COMMIT, SAVEPOINT and their kin in the text of statements.
"""
