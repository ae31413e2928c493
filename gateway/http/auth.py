"""An optional shared token in front of the API and the page (WANSTREAM_TOKEN)."""

import hmac

from quart import Quart, Request, Response, jsonify, request

from gateway.http.origins import OriginPolicy

_COOKIE = "wanstream_token"
_OPEN = frozenset({"/health", "/ready", "/metrics"})  # probes and scrapers have no token
_YEAR_S = 365 * 24 * 3600


def require_token(app: Quart, token: str, policy: OriginPolicy) -> None:
    """Answer 401 to every request without `token`, probes and CORS preflights excepted.

    It is accepted as `Authorization: Bearer ...`, and as `?token=...` when the page is opened in a browser,
    which then keeps it in a cookie. policy: tells whether that came over HTTPS, perhaps to a proxy.
    """

    def is_right(given: str) -> bool:
        return hmac.compare_digest(given.encode(), token.encode())

    @app.before_request
    async def check() -> tuple[Response, int, dict[str, str]] | None:
        if request.path in _OPEN or request.method == "OPTIONS":
            return None
        if any(is_right(given) for given in _given(request)):
            return None
        detail = "A token is needed: send 'Authorization: Bearer TOKEN', or open the page with ?token=TOKEN"
        return jsonify({"detail": detail}), 401, {"WWW-Authenticate": "Bearer"}

    @app.after_request
    async def remember(response: Response) -> Response:
        given = request.args.get("token", "")
        if is_right(given) and response.status_code < 400:
            response.set_cookie(
                _COOKIE,
                given,
                max_age=_YEAR_S,
                httponly=True,
                samesite="Strict",
                secure=policy.caller(request).is_secure,
            )
        return response


def _given(incoming: Request) -> list[str]:
    scheme, _, credentials = incoming.headers.get("Authorization", "").partition(" ")
    return [
        credentials.strip() if scheme.lower() == "bearer" else "",
        incoming.args.get("token", ""),
        incoming.cookies.get(_COOKIE, ""),
    ]
