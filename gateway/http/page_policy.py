"""The Content-Security-Policy of the server's HTML pages.

What a page may load and run comes from this server alone, so that a name or prompt that slipped into the
markup could neither run nor send anything. Frames: of the same machine, so that a local tool can show the
page in its own; elsewhere a page in a frame could be made to catch clicks that were meant for another one.
"""

from typing import Final

from quart import Quart, Response

from gateway.http.origins import OriginPolicy

# WebRTC needs no entry; `blob:` is for films that the user chose, `data:` for icons of Swagger UI.
_SOURCES: Final = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
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


def protect_pages(app: Quart, origins: OriginPolicy) -> None:
    """Send the policy with every page."""
    frames = "*" if origins.allows_all else " ".join([*_FRAMES, *(o for o in origins.listed if "://" in o)])
    policy = "; ".join([*_SOURCES, f"frame-ancestors {frames}"])

    @app.after_request
    async def add(response: Response) -> Response:
        if response.mimetype == "text/html":
            response.headers["Content-Security-Policy"] = policy
        return response
