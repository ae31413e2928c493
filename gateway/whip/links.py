"""ICE servers as Link header fields (RFC 9725 4.6), in the form that the simplest client can read."""

from collections.abc import Iterable, Iterator
from typing import Final

from gateway.webrtc.ice.turn_credentials import IceServer, server_urls

_SCHEMES: Final = ("stun:", "stuns:", "turn:", "turns:")
_UNSAFE: Final = frozenset(',"\\<> ')  # OBS splits at commas, npm clients at `, <`; none of them unescapes


def ice_links(servers: Iterable[IceServer]) -> Iterator[str]:
    """One field per URL. Left out is what could not be read again."""
    for server in servers:
        for url in server_urls(server):
            field = f'<{url}>; rel="ice-server"'
            username, credential = server["username"], server["credential"]
            if username and credential:
                field += f'; username="{username}"; credential="{credential}"; credential-type="password"'
            given = [url, *([username, credential] if username and credential else [])]
            if url.startswith(_SCHEMES) and not any(_UNSAFE & set(text or "") for text in given):
                yield field
