"""The Content-Security-Policy of the server's HTML pages.

What a page may load and run comes from this server alone, so that a name or prompt that slipped into the
markup could neither run nor send anything. Frames: of the same machine, so that a local tool can show the
page in its own; elsewhere a page in a frame could be made to catch clicks that were meant for another one.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import Final

from quart import Quart, Response

from gateway.access.origins import OriginPolicy

# WebRTC needs no entry; `blob:` is for films that the user chose, `data:` for icons of Swagger UI.
_SOURCES: Final = (
    "default-src 'none'",
    "img-src 'self' blob: data:",
    "media-src 'self' blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
)
_FRAMES: Final = (
    "'self'",
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1:*",
    "https://127.0.0.1:*",
    "file:",
)


def protect_pages(app: Quart, origins: OriginPolicy, scripts: Iterable[str], styles: Iterable[str]) -> None:
    """Send the policy with every page. scripts, styles: those that stand in pages themselves."""
    frames = "*" if origins.allows_all else " ".join([*_FRAMES, *(o for o in origins.listed if "://" in o)])
    own = (_sources("script-src", scripts), _sources("style-src", styles))
    policy = "; ".join([*_SOURCES, *own, f"frame-ancestors {frames}"])

    @app.after_request
    async def add(response: Response) -> Response:
        if response.mimetype == "text/html":
            response.headers["Content-Security-Policy"] = policy
        return response


def _sources(directive: str, texts: Iterable[str]) -> str:
    """Files of this server, and texts by their hash."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join([directive, "'self'", *(f"'sha256-{digest}'" for digest in hashes)])
