"""The yardstick: the shortest aiortc server that sends a video straight back. No Triton, nothing tuned."""

import asyncio
import logging
import sys

from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, request


def create_app() -> Quart:
    """An app with the two routes that `benchmarks.peer` uses."""
    app = Quart(__name__)
    connections: set[RTCPeerConnection] = set()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/api/v1/webrtc/offer")
    async def offer() -> dict[str, str]:
        body = await request.get_json()
        connection = RTCPeerConnection(
            RTCConfiguration(iceServers=[])
        )  # the default asks a public STUN server
        connections.add(connection)

        @connection.on("track")
        def on_track(track: MediaStreamTrack) -> None:
            connection.addTrack(track)

        @connection.on("connectionstatechange")
        async def on_state() -> None:
            if connection.connectionState in ("failed", "closed"):
                await connection.close()
                connections.discard(connection)

        await connection.setRemoteDescription(RTCSessionDescription(sdp=body["sdp"], type=body["type"]))
        await connection.setLocalDescription(await connection.createAnswer())
        answer = connection.localDescription
        return {"sdp": answer.sdp, "type": answer.type}

    return app


def main() -> None:
    """Serve on 127.0.0.1 at the port given as the only argument."""
    logging.basicConfig(level=logging.WARNING)
    config = Config()
    config.bind = [f"127.0.0.1:{int(sys.argv[1])}"]
    config.accesslog = None
    asyncio.run(serve(create_app(), config))


if __name__ == "__main__":
    main()
