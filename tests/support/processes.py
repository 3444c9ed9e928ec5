"""The environment of processes that tests start."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def environment(*folders: Path, **variables: str) -> dict[str, str]:
    """Return an environment in which a process imports what this one does.

    Args:
        *folders: where to look first.
        **variables: further variables.
    """
    # the package under test may be a tree's or a wheel's: it has to be the same one there
    path = os.pathsep.join([*map(str, folders), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, **variables}
