"""What happens in a Session: rows that are flushed, expired and attached, and edits in place.

`session_events` hears of mappers and Sessions. A `row_link` ties a value to its row, and
`edits_in_place` looks after the values of one Session that can be edited in place.
"""
