"""HTTP proxies: what leaves this machine goes through the one that the environment names, nothing else does.

The variables are those that all programs share: `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, in
lower or upper case. They are read by the standard library at each call, whatever `Config` was made from.
Triton is asked without a proxy, wherever it is, unless `grpc_proxy` is set, gRPC's own variable.
"""

import os
from typing import Final
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import httpx

from gateway.access.origins import is_loopback

_SCHEMES: Final = ("http", "https")
_VARIABLES: Final = "http_proxy, https_proxy, all_proxy"


class ProxyFailed(httpx.TransportError):
    """A request did not get through its proxy. The text is for users, and holds no password."""


class ProxyUnusable(ProxyFailed):
    """Nor will another try."""


class OutsideTransport(httpx.AsyncBaseTransport):
    """Sends requests through the proxy that the environment names for them; to this machine, never."""

    def __init__(self) -> None:
        self._direct = httpx.AsyncHTTPTransport()
        self._through: dict[str, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.send(request, proxy_for(request.url))

    async def send(self, request: httpx.Request, proxy: str | None) -> httpx.Response:
        """Raises ProxyFailed and what httpx raises."""
        if proxy is None:
            return await self._direct.handle_async_request(request)
        if proxy not in self._through:
            self._through[proxy] = _transport(proxy)
        try:
            return await self._through[proxy].handle_async_request(request)
        except httpx.ProxyError as error:  # its text is the proxy's own
            raise ProxyFailed(f"the proxy {_shown(proxy)} refuses it ({error})", request=request) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ProxyFailed(
                f"the proxy {_shown(proxy)} or what is behind it does not answer ({type(error).__name__})",
                request=request,
            ) from None

    async def aclose(self) -> None:
        for transport in (self._direct, *self._through.values()):
            await transport.aclose()


def proxy_for(url: httpx.URL) -> str | None:
    """The URL of the proxy for a request; None: it goes there directly."""
    proxies = getproxies_environment()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or is_loopback(url.host) or proxy_bypass_environment(url.host, proxies):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def problems() -> list[str]:
    """A sentence for each proxy of the environment that cannot be used, without its full stop."""
    found: dict[str, None] = {}
    for scheme in _SCHEMES:
        proxy = proxy_for(httpx.URL(f"{scheme}://example.org"))
        try:
            if proxy is not None:
                _transport(proxy)
        except ProxyUnusable as error:
            found[str(error)] = None
    return list(found)


def grpc_proxy_allowed(address: str) -> bool:
    """Whether gRPC may look for a proxy on the way to HOST:PORT."""
    host = address.rpartition(":")[0].strip("[]").lower()
    return not is_loopback(host) and bool(os.environ.get("grpc_proxy"))  # noqa: SIM112 - gRPC reads it in lower case only


def _transport(proxy: str) -> httpx.AsyncHTTPTransport:
    try:
        return httpx.AsyncHTTPTransport(proxy=httpx.Proxy(proxy))
    except ImportError:
        reason = "SOCKS needs another package. Run: pip install 'httpx[socks]'"
    except (ValueError, httpx.InvalidURL):
        reason = f"it must be a URL that begins with http, https, socks5 or socks5h. Change {_VARIABLES}"
    raise ProxyUnusable(
        f"the proxy {_shown(proxy)} of the environment cannot be used: {reason}, or name the hosts that need "
        "no proxy in no_proxy"
    )


def _shown(proxy: str) -> str:
    """Without user and password."""
    try:
        url = httpx.URL(proxy)
    except httpx.InvalidURL:
        return "URL"
    return f"{url.scheme}://{url.netloc.decode()}"
