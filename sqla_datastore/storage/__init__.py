"""Storages: the protocol and the local folder."""
