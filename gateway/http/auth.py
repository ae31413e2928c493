"""Tokens: WANSTREAM_TOKEN opens the server, WANSTREAM_ADMIN_TOKEN a locked one for changes.

Each is accepted as `Authorization: Bearer ...`, and as `?token=...` when the page is opened in a browser,
which then keeps it in a cookie.
"""

import hmac
from collections.abc import Callable
from typing import Any, Final, TypeVar

from quart import Quart, Request, Response, current_app, jsonify, request

from gateway.config import Config
from gateway.errors import ApiError
from gateway.http.openapi import refuses
from gateway.http.origins import OriginPolicy

View = TypeVar("View", bound=Callable[..., Any])

_COOKIE: Final = "wanstream_token"
_OPEN: Final = frozenset({"/health", "/ready", "/metrics"})  # probes and scrapers have no token
_YEAR_S: Final = 365 * 24 * 3600
_OPERATORS_ONLY: Final = "_wanstream_operators_only"


class Access:
    """Who may do what on one server."""

    def __init__(self, config: Config) -> None:
        admin, viewers = config.secrets.admin_token, config.secrets.access_token
        self._admin = admin
        self._tokens = [] if viewers is None else [token for token in (viewers, admin) if token is not None]
        self.locked = config.locked

    @property
    def asks_for_token(self) -> bool:
        return bool(self._tokens)

    def admits(self, given: str) -> bool:
        """Whether a token opens the server."""
        return any(_equal(given, token) for token in self._tokens) or self._is_admin(given)

    def may_change_server(self, incoming: Request) -> bool:
        """Whether a request may load pipelines and change what all viewers share."""
        return not self.locked or any(self._is_admin(given) for given in tokens_of(incoming))

    def refusal(self, holds: str | None) -> ApiError:
        """What viewers of a locked server are told. holds: the pipeline that they can use."""
        advice = f"Use {holds}, which it holds" if holds else "Wait until it has loaded its pipeline"
        remedy = "send the admin token" if self._admin else "its operator can set WANSTREAM_ADMIN_TOKEN"
        return ApiError(403, f"This server is locked. {advice}; to change it, {remedy}.")

    def _is_admin(self, given: str) -> bool:
        return self._admin is not None and _equal(given, self._admin)


def operators_only(view: View) -> View:
    """Refuse a route to viewers of a locked server. To be applied right below the route's own decorator."""
    setattr(view, _OPERATORS_ONLY, True)
    return refuses(403)(view)


def guard_access(app: Quart, access: Access, policy: OriginPolicy, holds: Callable[[], str | None]) -> None:
    """Answer 401 to requests without a token, and 403 to what only operators may do.

    Probes and CORS preflights are open. policy: tells whether a request came over HTTPS, perhaps to a proxy.
    holds: which pipeline the server has, or will have.
    """

    @app.before_request
    async def check() -> tuple[Response, int, dict[str, str]] | None:
        if request.path in _OPEN or request.method == "OPTIONS":
            return None
        if access.asks_for_token and not any(access.admits(given) for given in tokens_of(request)):
            detail = (
                "A token is needed: send 'Authorization: Bearer TOKEN', or open the page with ?token=TOKEN"
            )
            return jsonify({"detail": detail}), 401, {"WWW-Authenticate": "Bearer"}
        view = current_app.view_functions.get(request.endpoint or "")
        if getattr(view, _OPERATORS_ONLY, False) and not access.may_change_server(request):
            raise access.refusal(holds())
        return None

    @app.after_request
    async def remember(response: Response) -> Response:
        given = request.args.get("token", "")
        if given and access.admits(given) and response.status_code < 400:
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
        incoming.args.get("token", ""),
        incoming.cookies.get(_COOKIE, ""),
    ]


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
