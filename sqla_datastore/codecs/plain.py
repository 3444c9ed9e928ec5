"""Codecs of Python's own types."""

CODECS = ()
