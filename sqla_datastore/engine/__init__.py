"""What happens to a connection: the statements that it runs, and how its transactions really end.

`listeners` hear of statements, `observer` sees the dialect's own calls, `endings` asks the driver
(`drivers`) what they did, and `control` reads transaction control in the text of statements.
"""
