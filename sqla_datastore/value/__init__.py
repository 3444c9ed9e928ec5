"""The value: `DataStore`, its entries, how it is saved, and `DataStoreIO`.

`opening` opens the object that holds it. `entry` knows what an entry is made of, `mapping` orders
entries and loads them one by one, `datastore` makes a value of them. `saving` looks for edits
(`fingerprint`), plans objects and switches to what was written; `holding` tells whether somebody
still holds an entry. `equality` compares, `inspection` describes: by `sizes` and `previews`, shown
by `display`. `typed_view` sees a value through its schema, `pydantic_schema` tells pydantic of it.
`prefetching` loads before the first touch, many values at once or for coroutines. `signing` makes
URLs for others. `io` is `DataStoreIO`, whose `batch` writes, over `byte_streams`.
"""
