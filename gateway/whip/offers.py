"""Which offers of publishers and players are taken, and what is answered in each of their sections."""

import re
from typing import Final

from gateway.errors import ApiError
from gateway.webrtc.signalling import Offer, Section, Sections, invalid

_SENDING: Final = ("sendrecv", "sendonly")
_RECEIVING: Final = ("sendrecv", "recvonly")
_CODECS: Final = "Send H264 or VP8; OBS: Output, Encoder, x264/NVENC H.264"
_RID: Final = re.compile(r"a=rid:\S+ send")


def read_publisher_offer(sdp: str) -> Offer:
    """An offer that brings one video. Its sound is taken and not used, a data channel is refused.

    Raises ApiError 400 for what cannot be read or sends nothing, 422 for what we cannot take as a whole: an
    answer to a part of it would publish less than the user asked for (RFC 9725 4.4).
    """
    sections = Sections(sdp)
    for section in sections.of("application"):
        section.kept = False
    video, audio = (_enabled(sections.of(kind)) for kind in ("video", "audio"))
    if not video:
        raise ApiError(422, "The offer has no video. Add a video track, then publish again.")
    if len(video) > 1 or len(audio) > 1:
        raise ApiError(422, "The offer has more than one video or audio track. Publish one of each at most.")
    [camera] = video
    if _is_simulcast(camera):
        raise ApiError(422, "Simulcast is not taken. Send one layer; OBS: Settings, Stream, Simulcast off.")
    if camera.direction not in _SENDING:
        raise invalid(f"the video section is {camera.direction}; a publisher offers sendonly or sendrecv")
    if not camera.kept:
        raise ApiError(422, f"No common video codec. {_CODECS}.")
    unread = [section for section in audio if section.kept and section.direction in _SENDING]
    return sections.answered(camera=camera, unread=unread)


def read_player_offer(sdp: str) -> Offer:
    """An offer that can show the video. Other sections stay inactive, but for a data channel's.

    Raises ApiError 400 for what cannot be read or shows nothing, 422 without a common codec.
    """
    sections = Sections(sdp)
    video = _enabled(sections.of("video"))
    if not video:
        raise invalid("no video section; a player offers recvonly video")
    receiving = [section for section in video if section.direction in _RECEIVING]
    if not receiving:
        raise invalid(f"the video section is {video[0].direction}; a player offers recvonly or sendrecv")
    usable = next((section for section in receiving if section.kept), None)
    if usable is None:
        raise ApiError(422, "No common video codec. Offer VP8 or H264 with packetization-mode=1.")
    return sections.answered(viewer=usable)


def _enabled(sections: list[Section]) -> list[Section]:
    return [section for section in sections if section.enabled]


def _is_simulcast(section: Section) -> bool:
    layers = sum(_RID.match(line) is not None for line in section.lines)
    return layers > 1 or any(line.startswith("a=simulcast:") for line in section.lines)
