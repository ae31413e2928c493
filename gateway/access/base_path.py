"""A path below which the server stands behind a proxy: https://example.org/video/ instead of https://example.org/.

A proxy that takes the path away says which in X-Forwarded-Prefix, and is believed when it is a trusted one;
for one that leaves it there, WANSTREAM_BASE_PATH names it. Addresses without the path are served all the
same: probes know no proxy. In the routes it is `request.root_path`.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from quart import Quart

from gateway.config import PATH_PREFIX, Config

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class _BelowPath:
    """An ASGI application that tells the inner one below which path it is called."""

    def __init__(self, inner: Asgi, config: Config) -> None:
        self._inner = inner
        self._base = config.base_path
        self._proxies = config.trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._inner(scope, receive, send)
        path = scope["path"]
        if self._base and path == self._base:  # relative addresses of the page need the slash
            return await _redirect(f"{self._base}/", send)
        if self._base and path.startswith(f"{self._base}/"):
            scope = {**scope, "root_path": self._base}
        elif prefix := self._forwarded(scope):
            scope = {**scope, "root_path": prefix, "path": prefix + path}
        return await self._inner(scope, receive, send)

    def _forwarded(self, scope: Scope) -> str:
        """What a trusted proxy took away, or nothing."""
        values = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
        if not values or not _is_among(scope.get("client"), self._proxies):
            return ""
        prefix = values[-1].decode("latin-1").rpartition(",")[2].strip().rstrip("/")
        return prefix if PATH_PREFIX.fullmatch(prefix) else ""


def serve_below_path(app: Quart, config: Config) -> None:
    """Call once, before the app is served."""
    app.asgi_app = _BelowPath(app.asgi_app, config)  # type: ignore[method-assign,assignment]


def _is_among(
    client: Sequence[Any] | None, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in networks)


async def _redirect(address: str, send: Send) -> None:
    headers = [(b"location", address.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
