"""What the mapped classes and tables declare: which columns hold values, and in which folders.

Each module imports only those that stand before it in this list:

- `sqlalchemy_compat`: what SQLAlchemy does not document, for all rooms from here on.
- `folder_templates`: the text of a ``folder=`` template and what is refused in it.
- `path_segments`: one segment of such a path; it renders rows, matches paths, and tells whether it
  can meet another segment.
- `folders`: a template resolved against its table, and the set of folders that templates render.
- `columns`: the declared columns of one table.
- `conflicts`: templates of two tables whose rows could get the same folder.
- `declarations`: all that the process has declared so far, looked up by table or MetaData.

Nothing here reads or writes a storage. Only `declarations.present` and
`declarations.present_columns` ask the database.
"""
