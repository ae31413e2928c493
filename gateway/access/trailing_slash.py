"""Trailing slashes: where a request that ends in one too many meant to go."""

from urllib.parse import quote

from quart import Request, current_app


def without_slash(incoming: Request) -> str | None:
    """Path and query of the route that is there without the slash; None: there is none.

    FastAPI's servers answer 307 then, which lets clients repeat the request with its body. Scope is one of
    them, but there a GET below /api/ finds the catch-all of its web UI first, and is 404 here, too.
    """
    path = incoming.path
    if not path.endswith("/") or (incoming.method in ("GET", "HEAD") and path.startswith("/api/")):
        return None
    meant = path.rstrip("/")
    routes = current_app.url_map.bind("")
    if not meant or not routes.test(meant, incoming.method):
        return None
    query = incoming.query_string.decode("latin-1")
    return quote(meant) + (f"?{query}" if query else "")
