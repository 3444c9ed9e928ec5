"""The command ``sqla-datastore``."""
