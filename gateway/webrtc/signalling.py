"""Offers as text: what is refused, and why; what is rewritten so that aiortc takes it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiortc import RTCIceCandidate
from aiortc.codecs import CODECS, is_rtx
from aiortc.rtcpeerconnection import find_common_codecs
from aiortc.sdp import (
    DIRECTIONS,
    H264Profile,
    MediaDescription,
    SessionDescription,
    grouplines,
    parse_h264_profile_level_id,
)

from gateway.errors import ApiError
from gateway.http.validation import quoted
from gateway.webrtc.candidates import END_OF_CANDIDATES, CandidateFilter, too_many_candidates

MAX_SDP_CHARACTERS: Final = 64 << 10
_MAX_SDP_SECTIONS: Final = 8  # each may cost a transport with sockets of its own; clients offer up to three

_H264_BASELINE: Final = (H264Profile.PROFILE_BASELINE, H264Profile.PROFILE_CONSTRAINED_BASELINE)
_H264_STAND_IN: Final = "42e01f"  # constrained baseline, which decoders of all profiles read
_SENDING: Final = ("sendrecv", "sendonly")
_RECEIVING: Final = ("sendrecv", "recvonly")


@dataclass(slots=True)
class Section:
    """One media section of an offer."""

    lines: list[str]
    mid: str
    media: MediaDescription  # of the rewritten text
    profiles: dict[str, str]  # H.264 profiles that were rewritten, by payload type
    kept: bool = False

    @property
    def direction(self) -> str:
        return self.media.direction or "sendrecv"

    @property
    def enabled(self) -> bool:
        """Whether the peer wants it at all."""
        return self.media.port != 0 or "a=bundle-only" in self.lines


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer that we answer.

    sdp: as aiortc takes it: without candidates, without the sections of which nothing can be used, and with
    H.264 of any profile called baseline. viewer: mid of the section that shows our video. camera: mid of the
    one that brings the peer's. unread: mids of those that may send, although nothing of it is used. actpass:
    mids of those that leave it to us who begins DTLS. transports: mid of the section whose connection each
    section uses, by mid. credentials: ICE user fragments and passwords.
    """

    sdp: str
    viewer: str | None
    camera: str | None
    unread: frozenset[str]
    actpass: frozenset[str]
    transports: Mapping[str, str]
    credentials: frozenset[str]
    candidates: list[RTCIceCandidate | None]
    filter: CandidateFilter
    _sections: Sequence[Section] = field(repr=False)

    def direction(self, mid: str | None) -> str:
        """What our side of a section does."""
        match (mid is not None and mid == self.viewer, mid is not None and mid == self.camera):
            case (True, True):
                return "sendrecv"
            case (True, False):
                return "sendonly"
            case (False, True):
                return "recvonly"
        return "recvonly" if mid in self.unread else "inactive"

    def complete(self, answer: str) -> str:
        """aiortc's answer, with the client's H.264 profiles and the refused sections in their places."""
        head, ours = grouplines(answer)
        remaining = iter(ours)
        sections = [
            _with_profiles(next(remaining), section.profiles) if section.kept else _refused(section)
            for section in self._sections
        ]
        return _join(head, sections)


class Sections:
    """The media sections of an offer. Those that are `kept` are answered, the others refused."""

    def __init__(self, sdp: str) -> None:
        """Raises ApiError 400 for a text that is no offer."""
        if len(sdp) > MAX_SDP_CHARACTERS:
            raise invalid(f"longer than {MAX_SDP_CHARACTERS >> 10} KiB")
        self._head, self._groups = grouplines(sdp)
        if len(self._groups) > _MAX_SDP_SECTIONS:
            raise invalid(f"more than {_MAX_SDP_SECTIONS} media sections")
        self._all, self.bundle = _parse(self._head, self._groups)
        _keep_usable(self._all)

    def __iter__(self) -> Iterator[Section]:
        return iter(self._all)

    def of(self, kind: str) -> list[Section]:
        """Those of one kind: audio, video, application."""
        return [section for section in self._all if section.media.kind == kind]

    def answered(
        self, *, viewer: Section | None = None, camera: Section | None = None, unread: Iterable[Section] = ()
    ) -> Offer:
        """The offer, to be answered; what is none of these is inactive. Raises ApiError 400."""
        kept = [section for section in self._all if section.kept]
        for section in kept:
            _check_transport(section)
        bundle = [mid for mid in self.bundle if any(section.mid == mid for section in kept)]
        candidates = CandidateFilter([section.mid for section in self._all], bundle[1:])
        chosen, left_out = candidates.choose(_candidates_of(self._groups, self._all))
        if left_out:
            raise too_many_candidates(left_out)
        text = _join(_with_bundle(self._head, bundle), [section.lines for section in kept])
        actpass = frozenset(s.mid for s in kept if s.media.dtls is not None and s.media.dtls.role == "auto")
        return Offer(
            sdp=text,
            viewer=viewer.mid if viewer else None,
            camera=camera.mid if camera else None,
            unread=frozenset(section.mid for section in unread),
            actpass=actpass,
            transports={s.mid: self._transport_of(s, bundle or [kept[0].mid]) for s in self._all},
            credentials=frozenset(_credentials(kept)),
            candidates=chosen,
            filter=candidates,
            _sections=self._all,
        )

    def _transport_of(self, section: Section, bundle: list[str]) -> str:
        return section.mid if section.kept and section.mid not in self.bundle else bundle[0]


def _credentials(sections: Iterable[Section]) -> Iterator[str]:
    for section in sections:
        if section.media.ice is not None:
            yield from (section.media.ice.usernameFragment or "", section.media.ice.password or "")


def read_offer(sdp: str, kind: str) -> Offer:
    """Refuse offers that could never show a picture, with a reason; prepare the others.

    Raises ApiError 400.
    """
    if kind != "offer":
        raise ApiError(400, f"The type must be 'offer', not '{quoted(kind, 40)}'")
    sections = Sections(sdp)
    viewer, camera = _viewer_and_camera(sections.of("video"))
    return sections.answered(viewer=viewer, camera=camera)


def invalid(reason: str) -> ApiError:
    """The refusal of an offer that cannot be read, or not be used."""
    return ApiError(400, f"Invalid SDP offer: {reason}")


def _parse(head: list[str], groups: list[list[str]]) -> tuple[list[Section], list[str]]:
    """The sections, and the mids that share the first one's transport. Raises ApiError 400."""
    default = next((line[2:] for line in head if line[2:] in DIRECTIONS), "sendrecv")
    rewritten = [_prepared(lines, str(index), default) for index, lines in enumerate(groups)]
    try:
        description = SessionDescription.parse(_join(head, [lines for lines, _ in rewritten]))
    except Exception as error:  # the parser raises whatever the malformed text makes it run into
        raise invalid(f"{type(error).__name__} while parsing") from error
    sections = [
        Section(lines, media.rtp.muxId, media, profiles)
        for (lines, profiles), media in zip(rewritten, description.media, strict=True)
    ]
    mids = [section.mid for section in sections]
    if len(set(mids)) < len(mids):
        raise invalid("two media sections have the same mid")
    groups_of_mids = (group.items for group in description.group if group.semantic == "BUNDLE")
    return sections, [str(mid) for mid in next(groups_of_mids, [])]


def _prepared(lines: list[str], index: str, direction: str) -> tuple[list[str], dict[str, str]]:
    """A section without candidates, with a mid and a direction, and the H.264 profiles that were replaced."""
    kept = [line for line in lines if not line.startswith(("a=candidate:", "a=end-of-candidates"))]
    if not any(line.startswith("a=mid:") for line in kept):
        kept.append(f"a=mid:{index}")
    if not any(line[2:] in DIRECTIONS for line in kept):
        kept.append(f"a={direction}")
    h264 = {m[1] for m in map(re.compile(r"a=rtpmap:(\d+) h264/", re.I).match, kept) if m}
    profiles: dict[str, str] = {}
    return [_with_known_profile(line, h264, profiles) for line in kept], profiles


def _with_known_profile(line: str, h264: set[str], profiles: dict[str, str]) -> str:
    """An H.264 fmtp line that aiortc understands; other lines, and other packetization modes, as they are."""
    match = re.match(r"a=fmtp:(\d+) (.+)", line)
    if match is None or match[1] not in h264:
        return line
    pairs = (part.partition("=") for part in match[2].split(";"))
    parameters = {name.strip().lower(): value.strip() for name, _, value in pairs}
    profile = parameters.get("profile-level-id", _H264_STAND_IN)
    if parameters.get("packetization-mode") != "1":
        return line
    if not _is_baseline(profile):
        profiles[match[1]] = profile
        profile = _H264_STAND_IN
    return f"a=fmtp:{match[1]} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile}"


def _is_baseline(profile: str) -> bool:
    try:
        return parse_h264_profile_level_id(profile)[0] in _H264_BASELINE
    except ValueError:
        return False


def _keep_usable(sections: list[Section]) -> None:
    """Mark the sections that aiortc can negotiate; the first data section only."""
    has_data = False
    for section in sections:
        media = section.media
        if media.kind in ("audio", "video"):
            common = find_common_codecs(CODECS[media.kind], media.rtp.codecs)
            section.kept = section.enabled and any(not is_rtx(codec) for codec in common)
        elif media.kind == "application" and not has_data and section.enabled:
            section.kept = has_data = media.profile == "DTLS/SCTP" or media.sctp_port is not None


def _viewer_and_camera(sections: list[Section]) -> tuple[Section, Section | None]:
    """The first section that can show our video, and the first that brings the peer's."""
    video = [section for section in sections if section.media.kind == "video"]
    if not video:
        raise invalid("no video section; add a video transceiver before the offer")
    usable = [section for section in video if section.kept]
    if not usable:
        raise invalid(
            "no common video codec; offer VP8 or H264 (H264 with packetization-mode=1, of any profile)"
        )
    viewer = next((section for section in usable if section.direction in _RECEIVING), None)
    if viewer is None:
        directions = " and ".join(dict.fromkeys(section.direction for section in usable))
        raise invalid(
            f"the video section is {directions}, so nothing could be shown; offer sendrecv or recvonly"
        )
    return viewer, next((section for section in usable if section.direction in _SENDING), None)


def _check_transport(section: Section) -> None:
    ice, dtls = section.media.ice, section.media.dtls
    if not (ice and ice.usernameFragment and ice.password):
        raise invalid(f"section '{quoted(section.mid, 40)}' has no a=ice-ufrag or no a=ice-pwd")
    if not (dtls and dtls.fingerprints):
        raise invalid(f"section '{quoted(section.mid, 40)}' has no a=fingerprint or no a=setup")


def _candidates_of(groups: list[list[str]], sections: list[Section]) -> list[dict[str, Any]]:
    """The candidates in an offer as trickled ones, with their end."""
    entries = [
        {"candidate": line, "sdpMid": section.mid}
        for lines, section in zip(groups, sections, strict=True)
        for line in lines
        if line.startswith("a=candidate:")
    ]
    ended = any(line.startswith("a=end-of-candidates") for lines in groups for line in lines)
    return [*entries, *([{"candidate": END_OF_CANDIDATES}] if ended else [])]


def _with_bundle(head: list[str], bundle: list[str]) -> list[str]:
    others = [line for line in head if not line.startswith("a=group:BUNDLE")]
    return [*others, f"a=group:BUNDLE {' '.join(bundle)}"] if bundle else others


def _with_profiles(lines: list[str], profiles: Mapping[str, str]) -> list[str]:
    restored = []
    for line in lines:
        payload_type = line.removeprefix("a=fmtp:").partition(" ")[0]
        if line.startswith("a=fmtp:") and payload_type in profiles:
            line = line.replace(
                f"profile-level-id={_H264_STAND_IN}", f"profile-level-id={profiles[payload_type]}"
            )
        restored.append(line)
    return restored


def _refused(section: Section) -> list[str]:
    media = section.media
    formats = " ".join(map(str, media.fmt))
    m_line = f"m={media.kind} 0 {media.profile} {formats}"
    return [m_line, "c=IN IP4 0.0.0.0", f"a=mid:{section.mid}", "a=inactive"]


def _join(head: list[str], sections: Iterable[list[str]]) -> str:
    lines = [*head, *(line for section in sections for line in section)]
    return "".join(f"{line}\r\n" for line in lines)
