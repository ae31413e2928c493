"""HTTP to addresses that users name: never to this machine or its network."""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from typing import Final

import httpx

from gateway.proxies import OutsideTransport, proxy_for

_PORTS: Final = {"http": 80, "https": 443}


class AddressNotAllowedError(httpx.RequestError):
    """A request to a loopback, private or link-local address, or without TLS."""


class PublicTransport(httpx.AsyncBaseTransport):
    """Sends requests over TLS to public addresses only; trusted origins are exempt.

    The name is looked up here and the connection goes to the address that was checked: a name server that
    answers differently the second time gains nothing. Where the environment names a proxy, that looks the
    name up, and decides what may be asked; names that mean private addresses here are refused all the same.
    """

    def __init__(self, trusted: Collection[str] = ()) -> None:
        """trusted: origins such as `http://mirror.local:8080`, chosen by whoever runs the server."""
        self._trusted = frozenset(origin(httpx.URL(url)) for url in trusted)
        self._transport = OutsideTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = proxy_for(request.url)
        if origin(request.url) not in self._trusted:
            host = request.url.host
            if request.url.scheme != "https":
                raise AddressNotAllowedError(f"{host} is not asked without TLS", request=request)
            try:
                address = await _public_address(request)
            except httpx.ConnectError:
                if proxy is None:
                    raise  # else only the proxy may know the name
            if proxy is None:
                request.url = request.url.copy_with(host=address)
                request.extensions = {**request.extensions, "sni_hostname": host}
        return await self._transport.send(request, proxy)

    async def aclose(self) -> None:
        await self._transport.aclose()


def origin(url: httpx.URL) -> str:
    """Scheme, host and port of a URL."""
    return f"{url.scheme}://{url.host.lower()}:{url.port or _PORTS.get(url.scheme, 0)}"


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address belongs to the internet at large."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if embedded is not None:
            return embedded.is_global and not embedded.is_multicast
    return ip.is_global and not ip.is_multicast


async def _public_address(request: httpx.Request) -> str:
    host, port = request.url.host, request.url.port or 443
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"{host} cannot be found", request=request) from error
    addresses = [str(address[0]) for *_, address in found]
    if not all(is_public(address.partition("%")[0]) for address in addresses):
        raise AddressNotAllowedError(f"{host} is an address of a private network", request=request)
    return addresses[0]
