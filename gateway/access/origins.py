"""Origins and host names: which web pages may use this server, and by which names it may be called.

A browser sends requests for every page that its user has open, also to servers on the user's own machine, and
says in `Origin` which page asks. Three rules keep pages of strangers out; programs send no `Origin` and never
meet the first two:

1. When the server is called by a loopback name, only pages of the same machine may change anything or read
   what is private: those of a loopback name, those from disk (`Origin: null`), and listed ones.
2. With a list in WANSTREAM_CORS_ORIGINS, that holds for every name of the server. CORS alone would only hide
   the answer from the page; a simple POST has acted by then.
3. A browser on this machine must not call the server by a name that anybody may have pointed at it (DNS
   rebinding): the page of such a name counts as the server's own. Where a token is asked for that is no
   danger, because neither the page nor the browser's cookies for that name have it.
"""

import asyncio
import functools
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from quart import Quart, Request, Response, jsonify, request
from werkzeug.datastructures import Headers

from gateway.config import Config
from gateway.http.validation import quoted

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Below /api/ all else is private: pictures, parameters, logs, credentials of TURN servers.
_PUBLIC: Final = frozenset(
    {
        "/api/v1/hardware/info",
        "/api/v1/lora/list",
        "/api/v1/loras",
        "/api/v1/models/status",
        "/api/v1/pipeline/status",
        "/api/v1/pipelines/schemas",
    }
)
_ASSET_FILES: Final = "/api/v1/assets/"
_DISK: Final = ("null", "file://")  # what browsers, and some that are built into programs, say of such a page
_WITHOUT_PREFLIGHT: Final = ("no-cors", "navigate")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LOCAL_SUFFIXES: Final = ("local", "lan", "home", "home.arpa", "internal", "localdomain")


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request tells of its way here, with what a trusted proxy added to it."""

    host: str  # as in the URL that was asked for: name and perhaps port
    origin: str  # of the page that asks; empty: no page
    is_secure: bool
    from_own_machine: bool  # directly, not through a trusted proxy
    same_origin: bool  # the browser says that page and URL have the same origin
    without_preflight: bool  # a form, or a script that does not want to read the answer

    @property
    def host_name(self) -> str:
        return _split(f"//{self.host}")[0]


class OriginPolicy:
    """The rules above, with the settings of one server."""

    def __init__(self, config: Config) -> None:
        listed = config.cors_origins or ()
        self._listed = frozenset(_normalized(origin) for origin in listed)
        self.allows_all = "*" in listed
        self._has_list = bool(listed) and not self.allows_all
        self._hosts = frozenset(_split(origin)[0] for origin in listed) - {""} | {config.host.lower()}
        self._proxies: Sequence[Network] = config.trusted_proxies
        self._asks_for_token = config.secrets.access_token is not None

    @property
    def listed(self) -> list[str]:
        """The listed origins as browsers spell them."""
        return sorted(self._listed)

    def caller(self, incoming: Request) -> Caller:
        """Who sent a request."""
        client = _address(incoming.remote_addr)
        server = _address((incoming.scope.get("server") or [None])[0])
        trusted = client is not None and any(client in network for network in self._proxies)
        forwarded = incoming.headers if trusted else Headers()
        scheme = _nearest(forwarded.get("X-Forwarded-Proto")) or incoming.scheme
        return Caller(
            host=_nearest(forwarded.get("X-Forwarded-Host")) or incoming.headers.get("Host", ""),
            origin=incoming.headers.get("Origin", "").strip(),
            is_secure=scheme == "https",
            # Also by an address of its network: a connection to oneself comes from where it goes to.
            from_own_machine=not trusted and client is not None and (client.is_loopback or client == server),
            same_origin=incoming.headers.get("Sec-Fetch-Site") == "same-origin",
            without_preflight=incoming.headers.get("Sec-Fetch-Mode") in _WITHOUT_PREFLIGHT,
        )

    def address_of(self, incoming: Request) -> Address | None:
        """Where a request comes from: what a trusted proxy says, or else the other end of the connection."""
        client = _address(incoming.remote_addr)
        if client is not None and any(client in network for network in self._proxies):
            return _address(_nearest(incoming.headers.get("X-Forwarded-For"))) or client
        return client

    def refuses_origin(self, caller: Caller) -> str | None:
        """Why a page may neither change anything nor read what is private; None: it may."""
        origin = caller.origin
        if not origin or self.allows_all or caller.same_origin or _normalized(origin) in self._listed:
            return None
        name, netloc = _split(origin)
        if netloc and netloc == _split(f"{urlsplit(origin).scheme}://{caller.host}")[1]:
            return None  # the server's own page, by whatever name
        if is_loopback(caller.host_name) or not caller.host:
            if is_loopback(name):
                return None
            if origin.lower() in _DISK and not self._has_list and not caller.without_preflight:
                return None
        elif not self._has_list:
            return None
        what = "from disk, or in a sandbox," if origin.lower() in _DISK else f"of {quoted(origin, 120)}"
        return (
            f"A page {what} may not use this server. To allow it, add {quoted(origin, 120)} to "
            "WANSTREAM_CORS_ORIGINS, a comma list of origins."
        )

    async def refuses_host(self, caller: Caller) -> str | None:
        """Why the server does not answer to the name by which it was called; None: it does."""
        if not caller.from_own_machine or not caller.host or self._asks_for_token or self.allows_all:
            return None
        name = caller.host_name
        if is_loopback(name) or _address(name) or name in self._hosts | _machine_names(socket.gethostname()):
            return None
        if name in _machine_names(await asyncio.to_thread(_full_name)):
            return None
        shown = quoted(name, 120)
        return (
            f"'{shown}' is not a name of this machine: use localhost, or an address. If a proxy on this "
            "machine passes requests on, set WANSTREAM_TRUSTED_PROXIES to its address; if the name is yours, "
            f"add http://{shown} to WANSTREAM_CORS_ORIGINS."
        )


def guard_origins(app: Quart, policy: OriginPolicy) -> None:
    """Answer 403 to what the policy refuses."""

    @app.before_request
    async def check() -> tuple[Response, int] | None:
        caller = policy.caller(request)
        text = await policy.refuses_host(caller)
        if text is None and _is_guarded(request):
            text = policy.refuses_origin(caller)
        return None if text is None else (jsonify({"detail": text}), 403)

    @app.after_request
    async def keep_files(response: Response) -> Response:
        # Only files that are there: the answer that there is none stays as it is for everybody.
        if (
            response.status_code < 400
            and request.path.startswith(_ASSET_FILES)
            and request.method != "OPTIONS"
        ):
            text = policy.refuses_origin(policy.caller(request))
            if text is not None:
                response = jsonify({"detail": text})
                response.status_code = 403
        return response


def is_loopback(name: str) -> bool:
    """Whether a host name or address always means the machine that uses it."""
    address = _address(name)
    if address is not None:
        return address.is_loopback or address.is_unspecified  # 0.0.0.0 leads to the own machine, too
    return name == "localhost" or name.endswith(".localhost")


def _is_guarded(incoming: Request) -> bool:
    if incoming.method not in _SAFE:
        return True
    path = incoming.path
    is_private = path.startswith("/api/") and path not in _PUBLIC and not path.startswith(_ASSET_FILES)
    return incoming.method != "OPTIONS" and is_private


def _normalized(origin: str) -> str:
    """An origin as browsers spell it: lower case, no default port, no slash at its end."""
    parts = _parts(origin.strip().rstrip("/"))
    return f"{parts.scheme}://{_split(origin)[1]}" if parts and parts.netloc else origin.strip().lower()


def _split(origin: str) -> tuple[str, str]:
    """(host name, host name with a port that is not the default), lower case; empty where there is none."""
    parts = _parts(origin.strip().rstrip("/"))
    if parts is None:
        return "", ""
    name = (parts.hostname or "").removesuffix(".")
    shown = f"[{name}]" if ":" in name else name
    port = parts.port
    is_default = port is None or port == _DEFAULT_PORTS.get(parts.scheme)
    return name, shown if is_default else f"{shown}:{port}"


def _parts(origin: str) -> SplitResult | None:
    try:
        parts = urlsplit(origin)
        parts.port  # noqa: B018 - read to learn whether it is a number
    except ValueError:
        return None
    return parts


def _address(text: str | None) -> Address | None:
    """An IP address; those of IPv4 that came through a socket for both are IPv4's."""
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _nearest(forwarded: str | None) -> str:
    """What the last proxy added; those before it, and the client, may have sent anything."""
    return (forwarded or "").rpartition(",")[2].strip().lower()


def _machine_names(name: str) -> frozenset[str]:
    name = name.lower().removesuffix(".")
    short = name.partition(".")[0]
    return frozenset({name, short, *_with_suffixes(short, _LOCAL_SUFFIXES)})


def _with_suffixes(name: str, suffixes: Iterable[str]) -> list[str]:
    return [f"{name}.{suffix}" for suffix in suffixes]


@functools.cache
def _full_name() -> str:
    return socket.getfqdn()  # may ask a name server
