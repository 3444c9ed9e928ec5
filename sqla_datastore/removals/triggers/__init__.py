"""Triggers that write down removals for rows that go without SQLAlchemy's knowledge.

A database cascade, raw SQL, another program: none of them passes the ledger. A trigger on each
column adds the URLs that rows lose to the table of `sqla_datastore.enable_removals`, in the
transaction that changes or deletes the rows.

`statements` has the functions that create and drop them. Each database has a module.
"""
