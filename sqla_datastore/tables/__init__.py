"""One entry of many rows as one Arrow table, for those who compare them.

The rows are selected by their columns, so no row is loaded into the Session: nothing of it is held,
marked or flushed later. `row_query` says what is selected, `entry_tables` what becomes of an entry,
`schemas` how entries agree, `pages` reads some rows at a time, and `collecting` has the calls.
"""
