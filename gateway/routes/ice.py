"""ICE servers for browsers."""

from typing import Any, Literal

from pydantic import BaseModel
from quart import Blueprint
from quart_schema import tag, validate_response

from gateway.access.auth import needs
from gateway.webrtc.ice.servers import IceServers


class IceServerBody(BaseModel):
    """An `RTCIceServer` of the browsers' API."""

    urls: str | list[str]
    username: str | None
    credential: str | None


class IceServersBody(BaseModel):
    iceServers: list[IceServerBody]  # noqa: N815 - the wire's name
    iceTransportPolicy: Literal["all", "relay"]  # noqa: N815 - as RTCConfiguration has it


def ice_blueprint(ice: IceServers) -> Blueprint:
    bp = Blueprint("ice", __name__, url_prefix="/api/v1/webrtc")

    @bp.get("/ice-servers")
    @needs("view")
    @tag(["webrtc"])
    @validate_response(IceServersBody)
    async def ice_servers() -> tuple[dict[str, Any], int, dict[str, str]]:
        """STUN and TURN servers, with credentials that hold for some minutes."""
        body = {"iceServers": await ice.get(), "iceTransportPolicy": ice.policy}
        return body, 200, {"Cache-Control": "no-store"}

    return bp
