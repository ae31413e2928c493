"""The HTTP side of WHIP and WHEP: one request to begin, one URL to change and end (RFC 9725)."""

import functools
import http
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from quart import Blueprint, Request, Response, request
from quart_schema import hide, tag

from gateway.access.auth import Access, needs
from gateway.access.origins import OriginPolicy
from gateway.errors import ApiError
from gateway.http.limited import limited_body
from gateway.http.openapi import PROBLEM, answers, takes_text
from gateway.stream.access import Grant
from gateway.stream.streams import MAIN
from gateway.webrtc.ice.servers import IceServers
from gateway.webrtc.signalling import MAX_SDP_CHARACTERS, invalid
from gateway.whip.links import ice_links
from gateway.whip.playing import Players
from gateway.whip.publishing import Publishers
from gateway.whip.session import Session, Sessions

_SDP: Final = "application/sdp"
_FRAGMENT: Final = "application/trickle-ice-sdpfrag"

_REFUSALS: Final = {
    "post": (400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
    "get": (401, 403),
    "patch": (400, 401, 403, 404, 412, 413, 415, 422, 429),
    "delete": (401, 403, 404),
}

View = Callable[..., Awaitable[Response]]
Begin = Callable[[str, str], Awaitable[tuple[Session, str]]]
"""begin(stream's id, offer): a session and its answer, for the current request."""


def whip_blueprint(
    publishers: Publishers, ice: IceServers, access: Access, policy: OriginPolicy
) -> Blueprint:
    """Publishing. Query: takeover=1; input_mode and prompt, for a stream that is made by it."""

    async def begin(stream_id: str, offer: str) -> tuple[Session, str]:
        return await publishers.publish(
            stream_id,
            offer,
            parameters=_parameters(request),
            takeover=request.args.get("takeover") == "1",
            first_address=_own_address(request),
        )

    bp = _Endpoint("whip", publishers, begin, ice, access).blueprint()

    @bp.after_request
    async def name_player(response: Response) -> Response:
        """Some programs look here for where to watch."""
        if response.status_code == 201:
            caller = policy.caller(request)
            stream_id = response.headers["Location"].split("/")[-2]
            url = f"{'https' if caller.is_secure else 'http'}://{caller.host}{request.root_path}/api/v1/whep/{stream_id}"
            response.headers["Livepeer-Playback-Url"] = url
        return response

    return bp


def whep_blueprint(players: Players, ice: IceServers, access: Access) -> Blueprint:
    """Watching. Query: wait=1, to be answered although there is nothing to see yet."""

    async def begin(stream_id: str, offer: str) -> tuple[Session, str]:
        wait = request.args.get("wait") == "1"
        return await players.play(stream_id, offer, wait=wait, first_address=_own_address(request))

    bp = _Endpoint("whep", players, begin, ice, access).blueprint()

    @bp.after_request
    async def name_type(response: Response) -> Response:
        """By this answer to HEAD a player sees what kind of address it was given."""
        if request.method == "HEAD" and response.status_code == 204:
            response.status_code = 200
            response.content_type = _SDP
        return response

    return bp


class _Endpoint:
    """The views of one protocol, called like the methods that they answer."""

    def __init__(
        self, kind: str, sessions: Sessions[Any], begin: Begin, ice: IceServers, access: Access
    ) -> None:
        """kind: whip or whep."""
        self._kind = kind
        self._sessions = sessions
        self._begin = begin
        self._ice = ice
        self._access = access
        self._grant: Grant = "publish" if kind == "whip" else "view"

    def blueprint(self) -> Blueprint:
        """The routes, at `/api/v1/KIND` and `/KIND`, with or without a stream's id."""
        bp = Blueprint(self._kind, __name__)
        bp.after_request(_as_problem)
        for root in (f"/api/v1/{self._kind}", f"/{self._kind}"):
            for path in (root, f"{root}/<stream_id>"):
                self._add(bp, path, self.post, self.get, self.options)
            self._add(bp, f"{root}/<stream_id>/<secret>", self.patch, self.delete, self.options)
        return bp

    def _add(self, bp: Blueprint, path: str, *views: View) -> None:
        """Let views answer the methods after which they are called."""
        for view in views:
            method = view.__name__
            bp.add_url_rule(
                path,
                f"{method}{len(bp.deferred_functions)}",
                needs(self._grant, MAIN)(self._documented(view, path)),
                methods=[method.upper()],
                provide_automatic_options=False,  # Quart's would answer before ours
                strict_slashes=False,  # a slash too many would be redirected, which few clients follow
            )

    def _documented(self, view: View, path: str) -> View:
        """A view as the API's document shows it: under its whole address, not under the short one."""

        @functools.wraps(view)
        async def call(**values: str) -> Response:
            return await view(**values)

        if not path.startswith("/api/") or view.__name__ == "options":
            shown: View = hide(call)
            return shown
        for status in _REFUSALS[view.__name__]:
            call = answers(status, PROBLEM, description="refused")(call)
        shown = tag([self._kind])(call)
        return shown

    @takes_text(_SDP)
    @answers(201, _SDP, description="the answer; Location is where to change and end the session")
    async def post(self, stream_id: str = MAIN) -> Response:
        """Publish to a stream by WHIP, or watch it by WHEP: an SDP offer."""
        session, answer = await self._begin(stream_id, await _text(request, _SDP))
        response = Response(answer, 201, content_type=_SDP)
        path = f"/api/v1/{self._kind}/{session.stream_id}/{session.secret}"
        response.headers["Location"] = request.root_path + path
        response.headers["ETag"] = session.etag
        response.headers["Accept-Patch"] = _FRAGMENT
        response.headers["Cache-Control"] = "no-store"
        await self._add_links(response)
        return response

    @answers(204, description="there is such an endpoint")
    async def get(self, stream_id: str = MAIN) -> Response:
        """See that the endpoint is there."""
        return Response(b"", 204)

    async def options(self, stream_id: str = MAIN, secret: str = "") -> Response:
        response = Response(b"", 200)
        response.headers["Allow"] = "PATCH, DELETE, OPTIONS" if secret else "POST, GET, HEAD, OPTIONS"
        if "Access-Control-Request-Method" not in request.headers:  # else it is a browser's preflight
            response.headers["Accept-Post"] = _SDP
            if self._access.allows(self._grant, self._access.stream(stream_id)):
                await self._add_links(response)
        return response

    @takes_text(_FRAGMENT)
    @answers(204, description="tried, as far as they are of use")
    async def patch(self, stream_id: str, secret: str) -> Response:
        """Add ICE candidates to a session: an SDP fragment."""
        session = self._sessions.find(stream_id, secret)
        session.change(await _text(request, _FRAGMENT), request.headers.get("If-Match"))
        return Response(b"", 204)

    @answers(200, "text/html", description="ended; the body is empty")
    async def delete(self, stream_id: str, secret: str) -> Response:
        """End a session."""
        await self._sessions.find(stream_id, secret).close()
        return Response(b"", 200)  # OBS takes 204 for a failure

    async def _add_links(self, response: Response) -> None:
        for field in ice_links(await self._ice.get()):
            response.headers.add("Link", field)


async def _text(incoming: Request, content_type: str) -> str:
    """A body of this type. Raises ApiError 400 (not UTF-8), 413, 415."""
    if incoming.mimetype != content_type:
        raise ApiError(415, f"The body must be {content_type}: set Content-Type")
    limit = f"{content_type} is limited to {MAX_SDP_CHARACTERS >> 10} KiB"
    body = await limited_body(incoming, MAX_SDP_CHARACTERS, limit)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise invalid("it is not UTF-8") from error


def _parameters(incoming: Request) -> dict[str, Any]:
    """What the query says of a stream's parameters."""
    mode, prompt = incoming.args.get("input_mode"), incoming.args.get("prompt")
    return {
        **({"input_mode": mode} if mode is not None else {}),
        **({"prompts": [{"text": prompt, "weight": 1.0}]} if prompt is not None else {}),
    }


def _own_address(incoming: Request) -> str | None:
    """The address of this machine that the request came to."""
    server = incoming.scope.get("server") or [None]
    return str(server[0]) if server[0] else None


async def _as_problem(response: Response) -> Response:
    """Errors as RFC 9457 has them, which is more than what everybody else gets."""
    if response.status_code >= 400 and response.mimetype == "application/json":
        detail = (await response.get_json())["detail"]
        if not isinstance(detail, str):
            detail = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in detail)
        status = http.HTTPStatus(response.status_code)
        problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
        response.set_data(json.dumps(problem))
        response.content_type = PROBLEM
    return response
