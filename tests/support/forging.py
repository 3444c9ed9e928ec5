"""Objects of an attacker who knows the format: any node and any bytes, with right checksums."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqla_datastore.exceptions import DataStoreError
from sqla_datastore.format import Container
from sqla_datastore.format import archive as zip_archive
from support.toys import MemoryReader, MemoryWriter

URL = "file:///runs/1/a.zip"


def forged(
    change: Callable[[dict[str, Any]], object] | None = None,
    *,
    text: str | None = None,
    version: int = 1,
    data: bytes = b"",
) -> bytes:
    """Return an object with a valid frame and checksum around a manifest of one's choice."""
    writer = MemoryWriter()
    out = zip_archive.ZipWriter(writer)
    offset = out.begin("x.bin", len(data))
    out.write(data)
    crc = out.end()
    manifest: dict[str, Any] = {
        "format": "sqla_datastore",
        "version": 1,
        "requires": [],
        "nested": 0,
        "entries": {
            "names": ["x"],
            "nodes": ['["toy.blob",1,{"numbers":[0],"mapped":false}]'],
            "blobs": [1],
            "nested": [],
        },
        "blobs": {"offsets": [offset], "sizes": [len(data)], "crcs": [crc], "kinds": [0]},
    }
    if change is not None:
        change(manifest)
    # written as the library does, so that no reader looks closer for the way it is written in
    written = json.dumps(manifest, separators=(",", ":")) if text is None else text
    body = written.encode("utf-8", "surrogatepass")
    out.add("manifest.json", body)
    out.close(version)
    return bytes(writer.data)


def forged_blobs(node: Any, *blobs: bytes) -> bytes:
    """Return an object with a node and blobs of one's choice.

    Args:
        node: JSON, or its text.
        blobs: padded to 64 bytes each.
    """
    padded = [blob + bytes(-len(blob) % 64) for blob in blobs]
    text = node if isinstance(node, str) else json.dumps(node)

    def change(manifest: dict[str, Any]) -> None:
        start = manifest["blobs"]["offsets"][0]
        manifest["entries"].update(nodes=[text], blobs=[len(blobs)])
        manifest["blobs"] = {
            "offsets": [start + len(b"".join(padded[:number])) for number in range(len(blobs))],
            "sizes": [*map(len, padded)],
            "crcs": [*map(zip_archive.crc32, padded)],
            "kinds": [0] * len(blobs),
        }

    return forged(change, data=b"".join(padded))


def forged_compressed(node: Any, stored: bytes, **figures: Any) -> bytes:
    """Return an object of one blob that is compressed, as its manifest says.

    Args:
        node: JSON.
        stored: what lies there.
        figures: `size`, `crc` and `method` of the manifest's columns; `stored_crc` is right unless
            it is given.
    """

    def change(manifest: dict[str, Any]) -> None:
        manifest["requires"] = ["compression"]
        manifest["entries"].update(nodes=[json.dumps(node)], blobs=[1])
        manifest["blobs"].update(
            sizes=[figures["size"]],
            crcs=[figures.get("crc", 0)],
            methods=[figures["method"]],
            stored_sizes=[figures.get("stored_size", len(stored))],
            stored_crcs=[figures.get("stored_crc", zip_archive.crc32(stored))],
        )

    return forged(change, data=stored)


def opened(data: bytes, *, maps: bool = False) -> Container:
    """Open an object."""
    return Container.open(MemoryReader(data, maps=maps), URL, nested=int)


def used(data: bytes) -> None:
    """Do with an object what a user does: describe, load, print and compare; ours may be raised."""
    with suppress(DataStoreError):
        container = opened(data)
        for name in container.names:
            with suppress(DataStoreError):
                container.describe(name)
            with suppress(DataStoreError):
                _look_at(container.load(name))
        list(container.check(deep=True))


def _look_at(value: Any) -> None:
    names = ("schema", "dtype", "shape", "index", "columns", "nbytes")
    for each in (value, *(getattr(value, name, None) for name in names)):
        try:
            repr(each)
        except ValueError as err:
            # Python's own, of any int of more than 4,300 digits
            if "digits" not in str(err):
                raise


def cost(call: Callable[[], object]) -> tuple[float, int]:
    """Return the seconds and the bytes of memory that a call takes at its peak.

    The peak is that of the process (Linux: ``VmHWM``, which a write to ``clear_refs`` resets), so
    it counts whatever library asked for it.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = _status("VmRSS"), time.process_time()
    call()
    seconds = time.process_time() - begin
    return seconds, max(0, _status("VmHWM") - before)


def allowed_seconds(nbytes: int) -> float:
    """Return how long a test may take over an object.

    That is twice what is promised, since other tests run at the same time; more where coverage
    traces each line.
    """
    return (2 + 2 * nbytes / 1024**2) * (3 if sys.gettrace() else 1)


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
