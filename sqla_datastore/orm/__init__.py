"""What happens in a Session: rows that are flushed, expired and attached, and edits in place.

`listeners` hear of mappers and Sessions, a `link` ties a value to its row, and a `watch` looks
after the values of one Session that can be edited in place.
"""
