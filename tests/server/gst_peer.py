"""GStreamer's webrtcbin as a WHIP publisher and a WHEP player.

Runs with Debian's own Python, which has the binding: `/usr/bin/python3 gst_peer.py ROLE URL CODEC [TOKEN]`,
where ROLE is publish or play. Writes `connected` and, as a player, `picture WIDTH HEIGHT` for each decoded
picture; ends with its input.
"""

import sys
import threading
import urllib.parse
import urllib.request

import gi

for _name in ("Gst", "GstSdp", "GstWebRTC"):
    gi.require_version(_name, "1.0")
from gi.repository import Gst, GstSdp, GstWebRTC  # noqa: E402

CAPS = {
    "VP8": "application/x-rtp,media=video,encoding-name=VP8,payload=96,clock-rate=90000",
    "H264": "application/x-rtp,media=video,encoding-name=H264,payload=96,clock-rate=90000,"
    "packetization-mode=(string)1",
}
ENCODERS = {
    "VP8": "vp8enc deadline=1 keyframe-max-dist=30 ! rtpvp8pay",
    "H264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 ! rtph264pay config-interval=-1",
}
DECODERS = {"VP8": "rtpvp8depay ! vp8dec", "H264": "rtph264depay ! avdec_h264"}
PUBLISHER = (
    "webrtcbin name=peer bundle-policy=max-bundle "
    "videotestsrc is-live=true ! video/x-raw,width=320,height=240 ! {encoder} ! {caps} ! peer. "
    "audiotestsrc is-live=true ! audioconvert ! audioresample ! opusenc ! rtpopuspay ! "
    "application/x-rtp,media=audio,encoding-name=OPUS,payload=97 ! peer."
)
PLAYER = "webrtcbin name=peer bundle-policy=max-bundle"
INDEX = 0  # of the video section, where there is only one


class Peer:
    """One connection, made by one POST."""

    def __init__(self, role: str, url: str, codec: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = ""
        self._screen = f"{DECODERS[codec]} ! fakesink name=screen signal-handoffs=true"
        caps = CAPS[codec]
        text = PUBLISHER.format(encoder=ENCODERS[codec], caps=caps) if role == "publish" else PLAYER
        self._pipeline = Gst.Pipeline()
        self._pipeline.add(Gst.parse_bin_from_description(text, False))
        self._peer = self._pipeline.get_by_name("peer")
        self._peer.connect("notify::ice-gathering-state", self._on_gathering)
        self._peer.connect("notify::connection-state", self._on_state)
        self._peer.connect("pad-added", self._on_pad)
        if role == "play":
            receiving = GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY
            self._peer.emit("add-transceiver", receiving, Gst.Caps.from_string(caps))
        self._peer.connect("on-negotiation-needed", self._on_negotiation)
        self._pipeline.set_state(Gst.State.PLAYING)

    def end(self) -> None:
        if self._session:
            self._send("DELETE", self._session, None)
        self._pipeline.set_state(Gst.State.NULL)

    def _on_negotiation(self, peer: Gst.Element) -> None:
        peer.emit("create-offer", None, Gst.Promise.new_with_change_func(self._on_offer))

    def _on_offer(self, promise: Gst.Promise) -> None:
        reply = promise.get_reply()  # owns the offer
        offer = reply.get_value("offer")
        self._peer.emit("set-local-description", offer, Gst.Promise.new())

    def _on_gathering(self, peer: Gst.Element, _: object) -> None:
        if peer.get_property("ice-gathering-state") == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
            threading.Thread(target=self._post, daemon=True).start()

    def _post(self) -> None:
        offer = self._peer.get_property("local-description").sdp.as_text()
        answer, location = self._send("POST", self._url, offer.encode())
        self._session = urllib.parse.urljoin(self._url, location)
        _, message = GstSdp.SDPMessage.new()
        GstSdp.sdp_message_parse_buffer(answer, message)
        description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
        self._peer.emit("set-remote-description", description, Gst.Promise.new())

    def _send(self, method: str, url: str, body: "bytes | None") -> "tuple[bytes, str]":
        headers = {**self._headers, **({"Content-Type": "application/sdp"} if body else {})}
        request = urllib.request.Request(url, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.read(), answer.headers.get("Location", "")

    def _on_state(self, peer: Gst.Element, _: object) -> None:
        if peer.get_property("connection-state") == GstWebRTC.WebRTCPeerConnectionState.CONNECTED:
            say("connected")

    def _on_pad(self, _: Gst.Element, pad: Gst.Pad) -> None:
        if pad.get_direction() != Gst.PadDirection.SRC:
            return
        sink = Gst.parse_bin_from_description(self._screen, True)
        sink.get_by_name("screen").connect("handoff", self._on_picture)
        self._peer.get_parent().add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    def _on_picture(self, _: Gst.Element, __: Gst.Buffer, pad: Gst.Pad) -> None:
        size = pad.get_current_caps().get_structure(0)
        say(f"picture {size.get_int('width').value} {size.get_int('height').value}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(role: str, url: str, codec: str, token: str = "") -> None:
    Gst.init(None)
    peer = Peer(role, url, codec, token)
    sys.stdin.read()
    peer.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
