"""Who may see the page: names that it is asked under, a token, and what browsers may do with it."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlencode

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_COOKIE: Final = "sqla_datastore_browse"
_HEADERS: Final = (
    (
        b"content-security-policy",
        b"; ".join(
            [
                b"default-src 'none'",
                b"style-src 'self'",
                b"img-src 'self'",
                b"form-action 'self'",
                b"base-uri 'none'",
                b"frame-ancestors 'none'",
            ]
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's own.

    Examples:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Lets requests through to a page that may see it.

    Only GET and HEAD pass. Without a token a request has to be made under a name of this machine: a
    stranger's site whose name was made to lead here (DNS rebinding) is asked under its own. With a
    token it needs that: once in the address, from then on as a cookie, which a stranger's site does
    not have.

    Args:
        app: the page.
        token: the token, or None where the page is bound to a loopback address.
    """

    def __init__(self, app: App, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._answer(scope, receive, send_guarded)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] not in ("GET", "HEAD"):
            await _refuse(send, 405, "This page is for reading: GET only.")
        elif self._token is None:
            if _is_own_name(headers.get(b"host", "")):
                await self._app(scope, receive, send)
            else:
                await _refuse(send, 400, "Ask for this page as http://127.0.0.1 or localhost.")
        elif self._is_token(_cookie(headers.get(b"cookie", ""), _cookie_name(scope))):
            await self._app(scope, receive, send)
        else:
            await self._let_in(scope, send)

    async def _let_in(self, scope: Scope, send: Send) -> None:
        """Turn a token in the address into a cookie, so that it stays in no history or log."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if not self._is_token(dict(query).get("token", "")):
            await _refuse(send, 403, "Open the address that sqla-datastore browse has printed.")
            return
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        # some servers have the query in it, too
        raw, _, _ = (scope.get("raw_path") or b"/").partition(b"?")
        # a path that begins with two slashes would be another host's
        path = "/" + raw.decode("latin-1").lstrip("/\\")
        cookie = f"{_cookie_name(scope)}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        location = path + (f"?{rest}" if rest else "")
        await _refuse(
            send, 303, "", (b"location", location.encode()), (b"set-cookie", cookie.encode())
        )

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return secrets.compare_digest(given.encode(), self._token.encode())


def _is_own_name(host: str) -> bool:
    name = (
        host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    )
    return is_loopback(name)


def _cookie_name(scope: Scope) -> str:
    """Return a name of this port's own: browsers send the cookies of a host to all its ports."""
    server = scope.get("server")
    return f"{_COOKIE}_{server[1] if server else ''}"


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


async def _refuse(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    kind = (b"content-type", b"text/plain; charset=utf-8")
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [kind, length, *headers]})
    await send({"type": "http.response.body", "body": body})
