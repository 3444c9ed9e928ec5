"""Files as entries: `File`, of any size, streamed into an object and out of it.

`file` is `File`, named by `names`. Its bytes are in `contents` before it is stored and in `stored`
after, read through a `blob_stream`. `codec` stores one, `tree` makes many of a folder.
"""
