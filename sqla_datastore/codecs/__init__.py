"""Codecs: the protocol, the registry, and one module per library."""
