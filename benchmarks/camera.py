"""Resident memory of the gateway while a peer sends pictures of a given size.

python -m benchmarks.camera --sizes 480x640,1080x1920,2160x3840,8192x8192
"""

import argparse
import asyncio
import fractions
import sys
import time
from typing import Any

import av
import httpx
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av.video.codeccontext import VideoCodecContext

from benchmarks.common import BenchmarkError, Server, gateway, load_pipeline, processes_by_role, rss_bytes
from benchmarks.results import add_out_option, write_result

SAMPLE_PERIOD_S = 0.2
FPS = 30
MB = 1e6
TIME_BASE = fractions.Fraction(1, FPS)


class GreyVideo(MediaStreamTrack):
    """A grey VP8 video: one key frame, then for ever the picture that says that nothing has changed."""

    kind = "video"

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self._packets = _grey(height, width)
        self._started = time.monotonic()
        self.sent = 0

    async def recv(self) -> av.Packet:
        await asyncio.sleep(max(0.0, self._started + self.sent / FPS - time.monotonic()))
        packet = av.Packet(self._packets[1 if self.sent % FPS else 0])
        packet.pts, packet.time_base = self.sent, TIME_BASE
        self.sent += 1
        return packet


def _grey(height: int, width: int) -> list[bytes]:
    context = av.CodecContext.create("libvpx", "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.framerate, context.time_base = fractions.Fraction(FPS), TIME_BASE
    context.options = {"deadline": "realtime", "cpu-used": "-16", "lag-in-frames": "0"}
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    packets = []
    for number in range(2):
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts = number
        packets += [bytes(packet) for packet in context.encode(frame)]
    return packets


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="480x640,1080x1920,2160x3840,8192x8192", help="HEIGHTxWIDTH, ...")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each stream")
    parser.add_argument("--mode", choices=["video", "text"], default="video", help="input mode")
    parser.add_argument("--pipeline", default="passthrough")
    add_out_option(parser)
    options = parser.parse_args()

    rows = []
    try:
        for size in options.sizes.split(","):
            height, width = map(int, size.split("x"))
            with gateway() as server:
                load_pipeline(server, options.pipeline)
                idle = _gateway_mb(server)
                most, said = asyncio.run(_stream(server, height, width, options.seconds, options.mode))
            rows.append({"size": size, "idle_mb": idle, "most_mb": most, "said": said})
            print(rows[-1], flush=True)
    except BenchmarkError as error:
        sys.exit(f"The benchmark failed: {error}")
    settings = {"seconds": options.seconds, "mode": options.mode, "pipeline": options.pipeline}
    print(write_result(options.out, "camera", {"settings": settings, "sizes": rows}))


async def _stream(
    server: Server, height: int, width: int, seconds: float, mode: str
) -> tuple[float, list[Any]]:
    """Most memory in MB, and what the server said."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    said: list[Any] = []
    channel = peer.createDataChannel("parameters")
    channel.on("message", said.append)
    peer.addTrack(GreyVideo(height, width))
    await peer.setLocalDescription(await peer.createOffer())
    body = {"sdp": peer.localDescription.sdp, "type": "offer", "initialParameters": {"input_mode": mode}}
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = (await client.post("/api/v1/webrtc/offer", json=body)).raise_for_status().json()
    await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
    most, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, _gateway_mb(server))
        await asyncio.sleep(SAMPLE_PERIOD_S)
    await peer.close()
    return most, said


def _gateway_mb(server: Server) -> float:
    return round(rss_bytes(processes_by_role(server)["gateway"]) / MB, 1)


if __name__ == "__main__":
    main()
