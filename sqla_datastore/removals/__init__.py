"""Durable removals: what a transaction supersedes is in the database until it is removed.

`table` writes down what will be removed, `due` removes it when it is time, and `triggers` write
down what goes without SQLAlchemy.
"""
