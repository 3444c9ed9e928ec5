"""Values in administration pages: `sqladmin` and `starlette_admin` have views and fields of theirs.

Lists and details show what is known of a value without a payload. Forms show its plain entries as
JSON; arrays, frames and what else JSON has no words for stay as they are.
"""
