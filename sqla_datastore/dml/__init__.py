"""What a statement does to objects, found out before it runs.

`insert_update_delete.effects_of` is the entry. `parameters` has what the statement assigns,
`affected_rows` and `upsert` the rows that it will find, `row_queries` the SELECTs about them, and
`effects` the answer.
"""
