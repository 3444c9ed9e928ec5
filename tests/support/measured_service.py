"""Run the example of FastAPI: ``python measured_service.py PORT DATABASE STORAGE``.

``GET /measures`` tells what the process takes, its highest since it began, and the longest time by
which its event loop was late since the last such request.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from support.examples import load_example

_EVERY_SECONDS = 0.005


class Lateness:
    """How late a task of the event loop was, at most."""

    def __init__(self) -> None:
        self._longest = 0.0

    async def watch(self) -> None:
        while True:
            due = time.perf_counter() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            self._longest = max(self._longest, time.perf_counter() - due)

    def take(self) -> float:
        longest, self._longest = self._longest, 0.0
        return longest


def measured(app: FastAPI) -> FastAPI:
    """Return an application that measures itself."""
    lateness = Lateness()
    watching: set[asyncio.Task[None]] = set()

    @app.get("/measures")
    async def measures() -> dict[str, Any]:
        if not watching:
            watching.add(asyncio.create_task(lateness.watch()))
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        taken, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return {"bytes": taken, "peak_bytes": peak, "late_seconds": lateness.take()}

    return app


if __name__ == "__main__":
    port, database, storage = sys.argv[1:]
    app = measured(load_example("fastapi_app").create_app(database, storage))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
