"""Run moto, a server of S3, on a port of loopback: ``python moto_server.py PORT``.

It serves the client of Google Cloud Storage as well, whose requests are those of S3 but for the
header that asks for a new name, and for more escapes than needed in paths. So a bucket that is made
as one of S3 can be reached as ``gs://`` too.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, unquote

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

_moto = DomainDispatcherApplication(create_backend_app)
_lock = threading.Lock()


def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer a request: one at a time, and Google's as if they were S3's."""
    # 0 is the generation of what is not there
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    if environ.get("HTTP_AUTHORIZATION", "").startswith("Bearer "):
        path, _, query = environ["RAW_URI"].partition("?")
        environ["RAW_URI"] = f"{quote(unquote(path))}?{query}"
    # moto looks for an object and makes it in two steps, so that of two writers both could win
    with _lock:
        return list(_moto(environ, start_response))


if __name__ == "__main__":
    run_simple(
        "127.0.0.1",
        int(sys.argv[1]),
        serve,
        threaded=True,
        request_handler=MotoRequestHandler,
    )
