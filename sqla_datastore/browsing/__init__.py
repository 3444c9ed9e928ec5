"""Looking at rows and values from outside the application: nothing here writes.

`rows` finds tables and rows by their `keys`, `entries` the entries of their values. `views` makes
of one what people can look at, with `plots` and `pictures`; `exports` writes one to a file. `app`
is the page that ``sqla-datastore browse`` serves, behind its `guard`; `server` runs it.
"""
