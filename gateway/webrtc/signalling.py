"""Offers and candidates as text: what is refused, and why."""

import re
from typing import Any

from aiortc.sdp import SessionDescription, candidate_from_sdp

from gateway.errors import ApiError

_MAX_SDP_CHARACTERS = 64 << 10
_MAX_SDP_SECTIONS = 8  # each may cost a transport with sockets of its own; clients offer up to three
_END_OF_CANDIDATES = ""


def check_offer(sdp: str, kind: str) -> None:
    """Refuse offers that could never show a picture, with a reason.

    Raises ApiError 400.
    """
    if kind != "offer":
        raise ApiError(400, f"The type must be 'offer', not {kind[:40]!r}")
    if len(sdp) > _MAX_SDP_CHARACTERS:
        raise ApiError(400, f"Invalid SDP offer: longer than {_MAX_SDP_CHARACTERS >> 10} KiB")
    try:
        description = SessionDescription.parse(sdp)
    except Exception as error:  # the parser raises whatever the malformed text makes it run into
        raise ApiError(400, f"Invalid SDP offer: {type(error).__name__} while parsing") from error
    if len(description.media) > _MAX_SDP_SECTIONS:
        raise ApiError(400, f"Invalid SDP offer: more than {_MAX_SDP_SECTIONS} media sections")
    video = [m for m in description.media if m.kind == "video"]
    if not video:
        raise ApiError(400, "Invalid SDP offer: no video section; add a video transceiver before the offer")
    names = {codec.mimeType.lower() for codec in video[0].rtp.codecs}
    if not names & {"video/vp8", "video/h264"}:
        raise ApiError(400, "Invalid SDP offer: no common video codec; offer VP8 or H264")
    if video[0].direction not in ("sendrecv", "recvonly"):
        raise ApiError(
            400,
            f"Invalid SDP offer: the video section is {video[0].direction}, so nothing could be shown; "
            "offer sendrecv or recvonly",
        )


def split_mdns_candidates(sdp: str) -> tuple[str, list[dict[str, Any]]]:
    """An offer without its `.local` candidates, and these as trickled ones.

    Looking such a name up takes a second when nobody answers; the answer must not wait for it.
    """
    kept: list[str] = []
    names: list[dict[str, Any]] = []
    section = -1
    for line in sdp.splitlines(keepends=True):
        section += line.startswith("m=")
        if line.startswith("a=candidate:") and ".local " in line:
            names.append({"candidate": line.strip(), "sdpMid": None, "sdpMLineIndex": section})
        else:
            kept.append(line)
    if names:
        kept = [line for line in kept if not line.startswith("a=end-of-candidates")]
    return "".join(kept), names


def parse_candidate(entry: dict[str, Any]) -> Any:
    """An aiortc candidate from `{candidate, sdpMid, sdpMLineIndex}`; None for end-of-candidates.

    Raises ApiError 400.
    """
    text = re.sub(r"^(a=)?candidate:", "", entry["candidate"].strip())
    if text == _END_OF_CANDIDATES:
        return None
    if entry.get("sdpMid") is None and entry.get("sdpMLineIndex") is None:
        raise ApiError(400, "Invalid ICE candidate: neither sdpMid nor sdpMLineIndex is given")
    try:
        candidate = candidate_from_sdp(text)
    except Exception as error:  # the parser asserts and indexes its way through the text
        raise ApiError(400, f"Invalid ICE candidate: {text[:80]!r} cannot be parsed") from error
    candidate.sdpMid = entry.get("sdpMid")
    candidate.sdpMLineIndex = entry.get("sdpMLineIndex")
    return candidate
