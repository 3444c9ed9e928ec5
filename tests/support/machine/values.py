"""Values as plain Python, so that the model can hold and compare them."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import pandas as pd

from sqla_datastore import DataStore

Plain = dict[str, Any]
Shape = Literal["plain", "small", "nested", "frame", "array"]


def payload(n: int, shape: Shape = "plain") -> Plain:
    """Return what a value is to hold, as plain Python."""
    if shape == "small":
        return {"n": n}
    found: Plain = {"n": n, "l": [n], "d": {"x": n}}
    if shape == "nested":
        found["c"] = {"n": n, "l": [n], "c": {"l": [n]}}
    elif shape == "frame":
        found["f"] = [n, n + 1]
    elif shape == "array":
        found["a"] = [n, n + 1, n + 2]
    return found


def value_of(plain: Plain) -> DataStore:
    """Make a value that holds this."""
    made = copy.deepcopy(plain)
    if "c" in made:
        made["c"] = value_of(made["c"])
    if "f" in made:
        made["f"] = pd.DataFrame({"x": made["f"]})
    if "a" in made:
        made["a"] = np.array(made["a"])
    return DataStore(made)


def plain_of(value: Any) -> Any:
    """Return what a value holds; loads every entry."""
    if isinstance(value, DataStore):
        return {name: plain_of(entry) for name, entry in value.items()}
    if isinstance(value, pd.DataFrame):
        return value["x"].tolist()
    return value.tolist() if isinstance(value, np.ndarray) else value


def editable(plain: Plain | None) -> list[str]:
    """Return the names of the entries that can be edited in place."""
    return [name for name in ("l", "d", "f", "c") if name in (plain or {})]


def edit_entry(entry: Any, name: str, plain: Plain, n: int) -> Plain:
    """Edit an entry in place; return what its value holds then."""
    plain = copy.deepcopy(plain)
    if name == "l":
        entry.append(n)
        plain["l"].append(n)
    elif name == "d":
        entry[f"k{n % 3}"] = n
        plain["d"][f"k{n % 3}"] = n
    elif name == "f":
        entry.loc[0, "x"] = n
        plain["f"][0] = n
    else:
        inner = entry["c"] if n % 2 and "c" in entry else entry
        held = plain["c"]["c"] if n % 2 and "c" in entry else plain["c"]
        inner["l"].append(n)
        held["l"].append(n)
    return plain


def assign_entry(value: DataStore, plain: Plain, n: int) -> Plain:
    """Assign or delete an entry; return what the value holds then."""
    plain = copy.deepcopy(plain)
    if n % 4 == 0 and len(plain) > 1 and "d" in plain:
        del value["d"], plain["d"]
    elif "a" in plain and n % 2:
        array = value.a.copy()
        array[0] = n
        value.a = array
        plain["a"][0] = n
    else:
        value.n = plain["n"] = n
    return plain
