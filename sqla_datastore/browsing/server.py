"""Serve the page until it is stopped."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Callable

from sqla_datastore.browsing.guard import Guard, is_loopback
from sqla_datastore.browsing.rows import Tables
from sqla_datastore.exceptions import ConfigurationError


def serve(
    tables: Tables, host: str, port: int, token: str | None, announce: Callable[[str], None]
) -> None:
    """Serve the page of some tables until SIGINT or SIGTERM.

    Args:
        tables: what is shown.
        host: the address to bind.
        port: 0 for a free one.
        token: asked for before anything is shown; where it is None and the address is no loopback
            one, a random one is made.
        announce: told the address to open, once it is bound.

    Raises:
        ConfigurationError: the extra ``browse`` is not installed, or the token is bad.
        OSError: the address cannot be bound.
    """
    try:
        import uvicorn

        from sqla_datastore.browsing.app import page_of
    except ImportError as err:
        raise ConfigurationError(
            f"the page needs {err.name}; install it with pip install 'sqla_datastore[browse]'"
        ) from err
    if token is not None and not re.fullmatch("[A-Za-z0-9._~-]{8,}", token):
        raise ConfigurationError(
            "a token has at least 8 letters, digits and '._~-'; leave it out for a random one"
        )
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(32)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        shown = f"[{host}]" if ":" in host else host
        query = f"?token={token}" if token else ""
        announce(f"http://{shown}:{listening.getsockname()[1]}/{query}")
        config = uvicorn.Config(
            Guard(page_of(tables), token),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=3,
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # some versions raise the signal again once all is closed
            return
