"""A proxy in front of a server that fails, waits and counts, and looks without the library."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from sqla_datastore import options

_RELAYS_SECONDS = 60
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
        began: when it came, in seconds of `time.monotonic`.
        ended: when it was answered, or given up.
    """

    method: str
    target: str
    sent: int = 0
    got: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0


@dataclass
class Fault:
    """What to do instead of relaying a request.

    Attributes:
        status: answer with it.
        drop: relay the request, and close the connection instead of answering.
        cut_request: relay half of the body and no more, and close the connection.
        cut_answer: send half of the answer's body, and close the connection.
        hang: seconds to wait before anything else, or until the proxy's `release`.
    """

    status: int | None = None
    drop: bool = False
    cut_request: bool = False
    cut_answer: bool = False
    hang: float = 0.0


@dataclass
class FaultProxy:
    """A proxy on a free loopback port; `rule` is called with each request and may name a fault.

    Passes on what it is sent as it is, with the name of the host, which may be signed.

    Attributes:
        upstream: the endpoint of the server.
        rule: what goes wrong, by default nothing.
        latency: how many seconds each request takes longer.
        seen: the requests, in the order of their coming.
        most_at_once: how many were in flight at the same time at most.
        clients: how many connections there are.
    """

    upstream: str
    rule: Callable[[Seen], Fault | None] = lambda seen: None
    latency: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    most_at_once: int = 0
    in_flight: int = 0
    clients: int = 0
    _address: Any = None
    _released: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def release(self) -> None:
        """Have what hangs go on, and wait until every request was relayed or given up."""
        self._released.set()
        with self._changed:
            assert self._changed.wait_for(lambda: not self.in_flight, _RELAYS_SECONDS)
        self._released.clear()

    def wait_for_the_last_client(self) -> None:
        """Wait until every client is gone, for example killed, and what it sent was relayed."""
        with socket.create_connection(self._address, _RELAYS_SECONDS) as last:
            # it is closed at the other end once it was accepted, and so once all before it were
            last.shutdown(socket.SHUT_WR)
            assert not last.recv(1)
        with self._changed:
            assert self._changed.wait_for(lambda: not self.clients, _RELAYS_SECONDS)

    def _count(self, *, clients: int = 0, requests: int = 0) -> None:
        with self._changed:
            self.clients += clients
            self.in_flight += requests
            self.most_at_once = max(self.most_at_once, self.in_flight)
            self._changed.notify_all()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve for a while; give the endpoint."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                # the client went away, in the middle of a request or of an answer
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def relay(self) -> None:
                proxy._count(requests=1)
                try:
                    proxy._relay(self)
                finally:
                    proxy._count(requests=-1)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = relay

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def process_request(self, *connection: Any) -> None:
                proxy._count(clients=1)
                super().process_request(*connection)

            def shutdown_request(self, connection: Any) -> None:
                super().shutdown_request(connection)
                proxy._count(clients=-1)

        with Server(("127.0.0.1", 0), Handler) as server:
            self._address = server.server_address
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                # the name of an account may stand behind host and port
                yield f"http://127.0.0.1:{self._address[1]}{urlsplit(self.upstream).path}"
            finally:
                self._released.set()
                server.shutdown()
                thread.join()

    def _relay(self, handler: BaseHTTPRequestHandler) -> None:
        size = int(handler.headers.get("content-length", 0))
        seen = Seen(handler.command, handler.path, size)
        self.seen.append(seen)
        fault = self.rule(seen) or Fault()
        body = handler.rfile.read(size // 2 if fault.cut_request else size)
        time.sleep(self.latency)
        self._released.wait(fault.hang)
        try:
            self._answer(handler, seen, fault, body)
        finally:
            seen.ended = time.monotonic()

    def _answer(
        self, handler: BaseHTTPRequestHandler, seen: Seen, fault: Fault, body: bytes
    ) -> None:
        if fault.status is not None:
            handler.send_response(fault.status)
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        if fault.cut_request or len(body) < seen.sent:
            handler.close_connection = True
            if body:
                self._ask_in_vain(handler, body)
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
        if fault.cut_answer:
            answer = answer[: len(answer) // 2]
            handler.close_connection = True
        handler.wfile.write(answer)

    def _ask(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        with self._sent(handler, body) as connection:
            answer = connection.getresponse()
            hop = {"connection", "transfer-encoding"}
            kept = {name.lower(): value for name, value in answer.getheaders()}
            kept = {name: value for name, value in kept.items() if name not in hop}
            return answer.status, kept, answer.read()

    def _ask_in_vain(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Send the beginning of a body and no more, and wait until the server is done with it."""
        with self._sent(handler, body) as connection:
            connection.sock.shutdown(socket.SHUT_WR)
            connection.sock.recv(1)

    @contextmanager
    def _sent(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> Iterator[http.client.HTTPConnection]:
        """Send a request on as it came."""
        server = urlsplit(self.upstream).netloc
        connection = http.client.HTTPConnection(server, timeout=_RELAYS_SECONDS)
        try:
            headers = {**dict(handler.headers.items()), "connection": "close"}
            connection.request(handler.command, handler.path, body, headers)
            yield connection
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
        self._read: dict[tuple[str, str], bytes] = {}

    def _listed(self) -> dict[str, str]:
        """The entity tag of every object, by path: what it is told by besides its name."""
        import obstore

        pages = obstore.list(self._client, self._prefix or None)
        objects = (found for page in pages for found in page)
        return {each["path"].removeprefix(f"{self._prefix}/"): each["e_tag"] for each in objects}

    def files(self) -> set[str]:
        """Every object."""
        return {*self._listed()}

    def folders(self) -> set[str]:
        """What stands before a slash in the paths of objects: there are no other folders."""
        paths = self.files()
        return {path[:at] for path in paths for at, char in enumerate(path) if char == "/"}

    def tree(self) -> dict[str, bytes]:
        """The bytes of every object, by path."""
        import obstore

        listed = self._listed()
        for path, tag in listed.items() - self._read.keys():
            data = bytes(obstore.get(self._client, self._key(path)).bytes())
            self._read[path, tag] = data
        return {path: self._read[path, tag] for path, tag in listed.items()}

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


@contextmanager
def stored_on_s3(endpoint: str) -> Iterator[StoredInBucket]:
    """Make a bucket on a server, and have `options.storage_options` reach it meanwhile."""
    import obstore.store

    name = f"b-{uuid.uuid4().hex}"
    request(endpoint, "PUT", f"/{name}")
    client = obstore.store.S3Store(name, **s3_options(endpoint))
    with options.using(storage_options=s3_options(endpoint)):
        yield StoredInBucket(f"s3://{name}/base", client)


@contextmanager
def proxy_in_front() -> Iterator[tuple[FaultProxy, dict[str, Any]]]:
    """Run a proxy in front of the server that `options.storage_options` name.

    Gives it, and options that name it instead.
    """
    found = options.storage_options
    name = next(name for name in ("base_url", "endpoint") if name in found)
    proxy = FaultProxy(found[name])
    with proxy.running() as endpoint:
        yield proxy, {**found, name: endpoint}


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the variables that name a server in another process."""
    named = {f"AWS_{name.upper()}": value for name, value in CREDENTIALS.items()}
    return {**named, "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}
