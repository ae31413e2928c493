"""A jitter buffer that hands a picture out with its last packet.

aiortc's own waits for the first packet of the next picture, which delays a camera by one frame.
The last packet of a picture carries RTP's marker bit, for VP8 (RFC 7741 4.1) and for H.264 (RFC 6184 5.1).
"""

from typing import Any

from aiortc import rtcrtpreceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame

from gateway.webrtc.aiortc_patches.members import require_members

require_members(rtcrtpreceiver, "JitterBuffer")
require_members(JitterBuffer(capacity=1), "_is_video", "_origin", "_packets", "_remove_frame")


class PromptJitterBuffer(JitterBuffer):
    """Video only differs from the base class; audio is left as it is."""

    def _remove_frame(self, sequence_number: int) -> JitterFrame | None:
        if not self._is_video:
            return super()._remove_frame(sequence_number)
        while (complete := self._first_picture()) is not None:
            data = b"".join(packet._data for packet in complete)
            self.remove(len(complete))
            if data:  # packets without payload are padding that browsers send to probe the bandwidth
                return JitterFrame(data, complete[0].timestamp)
        return None

    def _first_picture(self) -> list[Any] | None:
        """Packets of the oldest picture, up to its marker or the next picture; None while one is missing."""
        packets: list[Any] = []
        for count in range(self.capacity):
            packet = self._packets[(self._origin + count) % self.capacity]  # type: ignore[operator]
            if packet is None:
                return None
            if packets and packet.timestamp != packets[0].timestamp:
                return packets
            packets.append(packet)
            if packet.marker:
                return packets
        return None


def install_jitter_buffer() -> None:
    """Make aiortc's receivers use this buffer. Call before any session."""
    rtcrtpreceiver.JitterBuffer = PromptJitterBuffer  # type: ignore[attr-defined]
