"""Tokens: WANSTREAM_TOKEN opens the server, WANSTREAM_ADMIN_TOKEN a locked one for changes.

Each is accepted as `Authorization: Bearer ...`, and as `?token=...` when the page is opened in a browser,
which then keeps it in a cookie.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from quart import Quart, Request, Response, current_app, request

from gateway.access.origins import OriginPolicy
from gateway.config import Config
from gateway.errors import ApiError
from gateway.http.openapi import refuses
from gateway.stream.access import Grant, equal
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams

View = TypeVar("View", bound=Callable[..., Any])

_COOKIE: Final = "wanstream_token"
_FOR_PLAYERS: Final = ("/frame", "/control", "/mjpeg", "/output.ts", "/events")  # ends of addresses
_OPEN: Final = frozenset({"/health", "/ready", "/metrics"})  # probes and scrapers have no token
_YEAR_S: Final = 365 * 24 * 3600
_NEEDS: Final = "_wanstream_needs"
_DEEDS: Final[dict[Grant, str]] = {
    "view": "see this stream",
    "drive": "control this stream",
    "publish": "send pictures to this stream",
    "all": "do everything",
}
_OPERATORS_ONLY: Final = "_wanstream_operators_only"


class Access:
    """Who may do what on one server, and with its streams."""

    def __init__(self, config: Config, streams: Streams) -> None:
        admin, viewers = config.secrets.admin_token, config.secrets.access_token
        self._streams = streams
        self._view_token = config.secrets.view_token
        self._admin = admin
        self._tokens = [] if viewers is None else [token for token in (viewers, admin) if token is not None]
        self.locked = config.locked
        self._has_peers = bool(config.peers)

    @property
    def asks_for_token(self) -> bool:
        return bool(self._tokens)

    def admits(self, given: str) -> bool:
        """Whether a token opens the server."""
        return any(equal(given, token) for token in self._tokens) or self._is_admin(given)

    def knows(self, given: Sequence[str]) -> bool:
        """Whether one of these tokens is good for anything here."""
        return any(map(self.admits, given)) or bool(self._grants(given, None))

    def allows(self, need: Grant, stream: Stream | None = None) -> bool:
        """Whether the current request may do this, with this stream."""
        given = tokens_of(request)
        is_private = stream is not None and stream.tokens is not None
        opens_all = any(map(self.admits, given)) or not (self.asks_for_token or is_private)
        if opens_all:
            return True
        grants = self._grants(given, stream)
        # Where nobody has a token for everything, whoever drives a private stream may also end it.
        return need in grants or (need == "all" and "drive" in grants and not self.asks_for_token)

    def may_be_foreign(self, given: Sequence[str]) -> bool:
        """Whether these tokens, which open nothing here, may be those of a stream of another gateway."""
        return self._has_peers and any(given) and not self.knows(given)

    def require(self, need: Grant, stream: Stream | None = None) -> None:
        """Raises ApiError 401 or 403 when the current request may not do this, with this stream."""
        if self.allows(need, stream):
            return
        if self.knows(tokens_of(request)):
            raise ApiError(403, f"This token does not open that: one is needed that may {_DEEDS[need]}.")
        text = "A token is needed: send 'Authorization: Bearer TOKEN', or open the page with ?token=TOKEN"
        raise ApiError(401, text, headers={"WWW-Authenticate": "Bearer"})

    def handed_on(self, stream: Stream, role: str) -> str | None:
        """The token in a link that the current request may give to viewers, or to controllers."""
        if not self.asks_for_token and stream.tokens is None:
            return None
        if not self.allows("all", stream):
            return None
        if stream.tokens is not None:
            return stream.tokens.drive if role == "controller" else stream.tokens.view
        return self._view_token if role == "viewer" else None

    def _grants(self, given: Sequence[str], stream: Stream | None) -> frozenset[Grant]:
        """What tokens for less than everything open; without a stream: what has to do with none."""
        is_private = stream is not None and stream.tokens is not None
        has_view = self._view_token is not None and any(equal(each, self._view_token) for each in given)
        if stream is None:
            tokens = [each.tokens for each in self._streams if each.tokens is not None]
            return frozenset({"view"} if has_view or any(each.grants(given) for each in tokens) else ())
        if is_private and stream.tokens is not None:
            return stream.tokens.grants(given)
        return frozenset({"view"} if has_view else ())

    def may_change_server(self, incoming: Request) -> bool:
        """Whether a request may load pipelines and change what all viewers share."""
        return not self.locked or any(self._is_admin(given) for given in tokens_of(incoming))

    def refusal(self, holds: str | None, instead: str | None = None) -> ApiError:
        """What viewers of a locked server are told.

        holds: the pipeline that they can use. instead: what they can do, where that is something else.
        """
        advice = f"Use {holds}, which it holds" if holds else "Wait until it has loaded its pipeline"
        remedy = "send the admin token" if self._admin else "its operator can set WANSTREAM_ADMIN_TOKEN"
        wish = "to change it" if instead is None else "for this"
        return ApiError(403, f"This server is locked. {instead or advice}; {wish}, {remedy}.")

    def stream(self, name: str) -> Stream | None:
        return self._streams.lookup(name)

    def _is_admin(self, given: str) -> bool:
        return self._admin is not None and equal(given, self._admin)


def operators_only(instead: str | None = None) -> Callable[[View], View]:
    """Refuse a route to viewers of a locked server. To be applied right below the route's own decorator.

    instead: a clause about what they can do; None: use the pipeline that is loaded.
    """

    def mark(view: View) -> View:
        setattr(view, _OPERATORS_ONLY, (instead,))
        return refuses(403)(view)

    return mark


def is_operators_only(view: Callable[..., Any]) -> bool:
    """Whether a locked server refuses a route to its viewers."""
    return hasattr(view, _OPERATORS_ONLY)


def needs(grant: Grant, default: str | None = None, *, foreign: bool = False) -> Callable[[View], View]:
    """Open a route for tokens that grant less than everything. Below the route's own decorator.

    default: the stream that is meant when the address names none. foreign: the route itself finds out whether
    the stream is another gateway's, who judges the token, and judges it if not.
    """

    def mark(view: View) -> View:
        setattr(view, _NEEDS, (grant, default, foreign))
        return view

    return mark


def guard_access(app: Quart, access: Access, policy: OriginPolicy, holds: Callable[[], str | None]) -> None:
    """Answer 401 to requests without a token, and 403 to what only operators may do.

    Probes and CORS preflights are open. policy: tells whether a request came over HTTPS, perhaps to a proxy.
    holds: which pipeline the server has, or will have.
    """

    @app.before_request
    async def check() -> tuple[Response, int, dict[str, str]] | None:
        if request.path in _OPEN or request.method == "OPTIONS":
            return None
        view = current_app.view_functions.get(request.endpoint or "")
        grant: Grant
        default: str | None
        grant, default, foreign = getattr(view, _NEEDS, ("all", None, False))
        name = (request.view_args or {}).get("stream_id", default)
        if not (foreign and access.may_be_foreign(tokens_of(request))):
            access.require(grant, None if name is None else access.stream(name))
        closed = getattr(view, _OPERATORS_ONLY, None)
        if closed is not None and not access.may_change_server(request):
            raise access.refusal(holds(), *closed)
        return None

    @app.after_request
    async def remember(response: Response) -> Response:
        given = request.args.get("token", "")
        if given and access.knows([given]) and response.status_code < 400:
            response.set_cookie(
                _COOKIE,
                given,
                max_age=_YEAR_S,
                path=request.root_path or "/",
                httponly=True,
                samesite="Strict",
                secure=policy.caller(request).is_secure,
            )
        return response


def tokens_of(incoming: Request) -> list[str]:
    """What a request gives as its token, from the places where one may be."""
    scheme, _, credentials = incoming.headers.get("Authorization", "").partition(" ")
    return [
        credentials.strip() if scheme.lower() == "bearer" else "",
        incoming.args.get("token", "") if _is_for_players(incoming) else "",
        incoming.cookies.get(_COOKIE, ""),
    ]


def _is_for_players(incoming: Request) -> bool:
    """Whether a token may be part of the address: of pages and pictures, which are opened without headers."""
    path = incoming.path
    return incoming.method in ("GET", "HEAD") and (
        not path.startswith("/api/") or path.endswith(_FOR_PLAYERS)
    )
