"""A fresh file system for one run: an aged one changes what `fsync` costs by a factor of ten."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_IMAGE_BYTES = 6 * 2**30  # sparse: it takes what is written


@contextmanager
def fresh_file_system() -> Iterator[tuple[Path, str]]:
    """Yield a folder and what it lies on: a mounted ext4 image, else tmpfs, else what is there."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark")))
        for mount, what in (
            (_ext4_image, "ext4, fresh, in a loop-mounted image"),
            (_tmpfs, "tmpfs: fsync costs nothing here"),
        ):
            if mount(folder):
                stack.callback(_run, "umount", str(folder / "mounted"))
                yield folder / "mounted", what
                return
        yield folder, "the temporary folder, as old as it is: nothing could be mounted"


def _ext4_image(folder: Path) -> bool:
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    # all inodes at once: the kernel would write them while we measure
    eager = "lazy_itable_init=0,lazy_journal_init=0"
    return _run("mkfs.ext4", "-q", "-F", "-N", "200000", "-E", eager, str(image)) and _run(
        "mount", "-o", "loop", str(image), str(mounted)
    )


def _tmpfs(folder: Path) -> bool:
    return _run("mount", "-t", "tmpfs", "tmpfs", str(folder / "mounted"))


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
