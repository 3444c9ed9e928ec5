"""A real browser without a window: Debian's package ``chromium``, driven by its command line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 60
_IMAGES = Path(__file__).parents[2] / "docs" / "images"


def chromium() -> str:
    """Return the browser's path; without one the test is skipped, and in CI it fails."""
    given = os.environ.get("SQLA_DATASTORE_TEST_CHROMIUM")
    found = given or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is not None:
        return found
    reason = "there is no chromium; install it (Debian: apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def visit(url: str, folder: Path, *, dark: bool = False, size: tuple[int, int]) -> tuple[str, Path]:
    """Open a page in a fresh profile.

    Args:
        url: what to open.
        folder: for the profile and the picture.
        dark: whether the user prefers dark colours.
        size: of the window, in pixels.

    Returns:
        The document as the browser has it in the end, and a picture of the window.
    """
    picture = folder / "picture.png"
    done = subprocess.run(
        [
            chromium(),
            "--headless",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--force-device-scale-factor=1",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={picture}",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout, picture


def keep(picture: Path, name: str) -> None:
    """Make a picture one of the documentation's, where that is asked for."""
    from PIL import Image

    if os.environ.get("SQLA_DATASTORE_SCREENSHOTS"):
        _IMAGES.mkdir(exist_ok=True)
        Image.open(picture).convert("RGB").quantize(64).save(_IMAGES / name, optimize=True)
    assert (_IMAGES / name).stat().st_size < 150_000
