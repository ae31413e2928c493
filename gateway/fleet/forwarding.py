"""Requests about a session of another gateway: passed on to it, and its answer back.

A router with cookies sends a browser's requests to one gateway; programs without a cookie jar reach any of
them. The owner of the session judges the request as if it had come to it.
"""

from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx
from quart import Quart, Request, Response, request

from gateway.access.origins import OriginPolicy
from gateway.errors import ApiError
from gateway.fleet.owners import Owners
from gateway.http.limited import limited_body

_PASSED_ON: Final = "X-Wanstream-Passed-On"  # once is enough: the owner is the one who knows
_REQUEST_HEADERS: Final = ("Accept", "Authorization", "Content-Type", "Cookie", "If-Match", "Range")
_ANSWER_HEADERS: Final = (
    "Accept-Patch",
    "Cache-Control",
    "Content-Disposition",
    "Content-Length",
    "Content-Type",
    "ETag",
    "Link",
    "Location",
    "Retry-After",
    "Set-Cookie",
    "WWW-Authenticate",
)
_MAX_BYTES: Final = 1 << 20
_ADVICE: Final = "what is sent about a session has 1 MiB at most"
_TIMEOUT: Final = httpx.Timeout(60.0, connect=2.0)


class Forwarding:
    """Passes requests on to the gateways of a fleet."""

    def __init__(self, owners: Owners, policy: OriginPolicy) -> None:
        self._owners = owners
        self._policy = policy
        # A cookie that one caller is given must not be sent for the next one.
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        # Gateways of one fleet reach each other directly, whatever proxy leads out.
        self._client = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, cookies=no_cookies)

    async def pass_on(self, some_id: str, content: bytes | None = None) -> Response | None:
        """The owner's answer to the current request; None: the id is not another gateway's.

        content: of the request, where it has been read.

        Raises ApiError 404 when the owner is gone, 413.
        """
        owner = None if _PASSED_ON in request.headers else await self._owners.other(some_id)
        if owner is None:
            return None
        query = request.query_string.decode("latin-1")
        passed = self._client.build_request(
            request.method,
            f"http://{owner}{request.path}" + (f"?{query}" if query else ""),
            headers=self._headers(request),
            content=content if content is not None else await limited_body(request, _MAX_BYTES, _ADVICE),
        )
        try:
            answer = await self._client.send(passed, stream=True)
        except httpx.TransportError as error:
            raise ApiError(404, f"Session {some_id} is gone: its server does not answer") from error
        headers = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
        return Response(_pieces(answer), status=answer.status_code, headers=headers)

    async def close(self) -> None:
        await self._client.aclose()

    def _headers(self, incoming: Request) -> dict[str, str]:
        caller = self._policy.caller(incoming)
        given = {name: incoming.headers[name] for name in _REQUEST_HEADERS if name in incoming.headers}
        return given | {
            _PASSED_ON: "1",
            "X-Forwarded-Host": caller.host,
            "X-Forwarded-Proto": "https" if caller.is_secure else "http",
            "X-Forwarded-Prefix": incoming.root_path,
        }


def pass_on_to_owners(app: Quart, forwarding: Forwarding) -> None:
    """Pass on what names another gateway's session or stream in its address, or as its `stream`.

    After the check of the page that asks, before that of tokens, which are the owner's to judge.
    """

    @app.before_request
    async def check() -> Response | None:
        names = request.view_args or {}
        some_id = names.get("session_id") or names.get("stream_id") or request.args.get("stream")
        if some_id is None or request.method == "OPTIONS":
            return None
        return await forwarding.pass_on(some_id)


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The answer's body as it comes: pictures may follow for ever."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()
