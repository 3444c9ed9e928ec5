"""Folders in each other, deeper than Python calls and longer than a path that the system takes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def deep_folders(base: Path, names: Sequence[str], file: str) -> Iterator[None]:
    """Make folders of these names below a base, each in the one before, and a file in the last."""
    base.mkdir(parents=True, exist_ok=True)
    parent = os.open(base, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=parent)
        child = os.open(name, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
    os.close(os.open(file, os.O_CREAT | os.O_WRONLY, dir_fd=parent))
    os.close(parent)
    try:
        yield
    finally:
        # what pytest cleans up with calls itself for each level
        subprocess.run(["rm", "-rf", base / names[0]], check=True)
