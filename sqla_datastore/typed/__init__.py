"""Typed stores: which entries a value has, as a class says; see ``docs/typed.md``."""

from sqla_datastore.typed.constraints import Columns, Constraint, Dtype, MaxBytes, Shape

__all__ = ["Columns", "Constraint", "Dtype", "MaxBytes", "Shape"]
