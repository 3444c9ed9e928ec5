"""A proxy in front of an S3 server that fails, waits and counts, and looks without the library."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# given always: without credentials, obstore asks the address of a cloud's metadata for some
CREDENTIALS = {
    "access_key_id": "AKIDEXAMPLE",
    "secret_access_key": "wJalrXUtnFEMIEXAMPLEKEY",
    "region": "us-east-1",
}


def s3_options(endpoint: str, **others: Any) -> dict[str, Any]:
    """Return `options.storage_options` for a server."""
    return {
        **CREDENTIALS,
        "endpoint": endpoint,
        "client_options": {"allow_http": True},
        **others,
    }


def request(
    endpoint: str, method: str, target: str, headers: Mapping[str, str] | None = None
) -> bytes:
    """Ask a server without the library under test; return the body."""
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=20)
    try:
        connection.request(method, target, headers=headers or {})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    assert answer.status < 300, (answer.status, body)
    return body


@dataclass
class Seen:
    """One request that came to a proxy.

    Attributes:
        method: ``GET``, ``PUT`` and so on.
        target: path and query.
        sent: how many bytes its body had.
        got: how many bytes the answer's body had.
    """

    method: str
    target: str
    sent: int = 0
    got: int = 0


@dataclass
class Fault:
    """What to do instead of relaying a request.

    Attributes:
        status: answer with it.
        drop: relay the request, and close the connection instead of answering.
        hang: seconds to wait before anything else.
    """

    status: int | None = None
    drop: bool = False
    hang: float = 0.0


@dataclass
class FaultProxy:
    """A proxy on a free loopback port; `rule` is called with each request and may name a fault.

    Attributes:
        upstream: the endpoint of the server.
        rule: what goes wrong, by default nothing.
        latency: how many seconds each request takes longer.
        seen: the requests, in the order of their coming.
        most_at_once: how many were in flight at the same time at most.
    """

    upstream: str
    rule: Callable[[Seen], Fault | None] = lambda seen: None
    latency: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    most_at_once: int = 0
    _in_flight: int = 0

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve for a while; give the endpoint."""
        proxy, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                # the client went away, in the middle of a request or of an answer
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def relay(self) -> None:
                with lock:
                    proxy._in_flight += 1
                    proxy.most_at_once = max(proxy.most_at_once, proxy._in_flight)
                try:
                    proxy._relay(self)
                finally:
                    with lock:
                        proxy._in_flight -= 1

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = relay

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()

    def _relay(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        seen = Seen(handler.command, handler.path, len(body))
        self.seen.append(seen)
        fault = self.rule(seen) or Fault()
        time.sleep(self.latency + fault.hang)
        if fault.status is not None:
            handler.send_response(fault.status)
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        status, headers, answer = self._ask(handler, body)
        if fault.drop:
            handler.close_connection = True
            return
        seen.got = len(answer)
        handler.send_response_only(status)
        is_empty = handler.command == "HEAD" or status == 204
        if not is_empty:
            headers["content-length"] = str(len(answer))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer)

    def _ask(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.upstream.removeprefix("http://"), timeout=60)
        try:
            headers = {**dict(handler.headers.items()), "connection": "close"}
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            hop = {"connection", "transfer-encoding"}
            kept = {name.lower(): value for name, value in answer.getheaders()}
            kept = {name: value for name, value in kept.items() if name not in hop}
            return answer.status, kept, answer.read()
        finally:
            connection.close()


class StoredInBucket:
    """What lies in an object store below a prefix, seen without the library; see `Stored`.

    Args:
        base: the storage's URL.
        client: obstore's client of its bucket.
    """

    def __init__(self, base: str, client: Any) -> None:
        self.base = base
        self._client = client
        self._prefix = base.partition("://")[2].partition("/")[2]

    def files(self) -> set[str]:
        """Every object."""
        import obstore

        pages = obstore.list(self._client, self._prefix or None)
        return {found["path"].removeprefix(f"{self._prefix}/") for page in pages for found in page}

    def folders(self) -> set[str]:
        """What stands before a slash in the paths of objects: there are no other folders."""
        paths = self.files()
        return {path[:at] for path in paths for at, char in enumerate(path) if char == "/"}

    def tree(self) -> dict[str, bytes]:
        """The bytes of every object, by path."""
        import obstore

        return {
            path: bytes(obstore.get(self._client, self._key(path)).bytes()) for path in self.files()
        }

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}".lstrip("/")

    def put_back(self, wanted: Mapping[str, bytes]) -> None:
        """Make the objects what they were."""
        import obstore

        tree = self.tree()
        for path in tree.keys() - wanted.keys():
            obstore.delete(self._client, self._key(path))
        for path, data in wanted.items():
            if tree.get(path) != data:
                obstore.put(self._client, self._key(path), data)
