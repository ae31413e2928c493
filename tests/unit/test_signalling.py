"""Offers and candidates as text."""

from collections.abc import Sequence
from typing import Any

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import SessionDescription

from gateway.errors import ApiError
from gateway.webrtc.candidates import MAX_CANDIDATES, CandidateFilter, parse_candidate
from gateway.webrtc.signalling import Offer, read_offer

HOST = "candidate:1 1 UDP 2122252543 192.0.2.1 54321 typ host"
NAME = "candidate:2 1 udp 2122252543 b3c2f0c4-0000-4000-8000-000000000000.local 54321 typ host"


async def offered(*directions: str, kinds: Sequence[str] = ()) -> str:
    """An offer of aiortc's with video sections of these directions and a data channel."""
    peer = RTCPeerConnection()
    peer.createDataChannel("parameters")
    for kind in kinds:
        peer.addTransceiver(kind)
    for direction in directions:
        peer.addTransceiver("video", direction=direction)
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp
    await peer.close()
    return sdp


def with_fmtp(sdp: str, fmtp: str) -> str:
    """The same offer with H.264 only, of these parameters."""
    lines = []
    for line in sdp.splitlines():
        line = line.replace("VP8/90000", "VP9/90000")
        lines.append(f"{line.split(' ')[0]} {fmtp}" if "packetization-mode" in line else line)
    return "\r\n".join(lines) + "\r\n"


async def answered(offer: Offer) -> str:
    """What the gateway answers."""
    peer = RTCPeerConnection()
    await peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
    for transceiver in peer.getTransceivers():
        transceiver.direction = offer.direction(transceiver.mid)
    await peer.setLocalDescription(await peer.createAnswer())
    answer = offer.complete(peer.localDescription.sdp)
    await peer.close()
    return answer


def candidate(number: int, **parts: Any) -> dict[str, Any]:
    """A trickled candidate; each number is another address."""
    fields = {"component": 1, "protocol": "udp", "ip": f"192.0.2.{number}", "port": 5000 + number} | parts
    text = "candidate:1 {component} {protocol} 2122252543 {ip} {port} typ host".format(**fields)
    return {"candidate": text, "sdpMid": "0", "sdpMLineIndex": 0}


@pytest.mark.parametrize("prefix", ["candidate:", "", "a=candidate:"])
def test_candidates_are_read_with_and_without_prefix(prefix: str) -> None:
    text = prefix + HOST.removeprefix("candidate:")

    candidate = parse_candidate({"candidate": text, "sdpMid": "0", "sdpMLineIndex": None})

    assert candidate is not None
    assert (candidate.ip, candidate.port, candidate.sdpMid) == ("192.0.2.1", 54321, "0")


@pytest.mark.parametrize("text", ["", "  ", "candidate:", "a=candidate:"])
def test_an_empty_candidate_is_the_end_of_candidates(text: str) -> None:
    assert parse_candidate({"candidate": text}) is None


@pytest.mark.parametrize("text", ["garbage", "candidate:1 1 UDP", "candidate:a b c d e f g h"])
def test_unreadable_candidates_are_refused(text: str) -> None:
    with pytest.raises(ApiError, match="Invalid ICE candidate") as caught:
        parse_candidate({"candidate": text, "sdpMid": "0"})

    assert caught.value.status == 400


def test_a_candidate_of_no_section_is_refused() -> None:
    with pytest.raises(ApiError, match="sdpMid"):
        parse_candidate({"candidate": HOST})


@pytest.mark.parametrize(
    "parts",
    [
        {"component": 0},
        {"component": 2},
        {"protocol": "tcp"},
        {"protocol": "ssltcp"},
        {"port": 0},
        {"port": 65536},
        {"port": -1},
        {"ip": "224.0.0.251"},
        {"ip": "255.255.255.255"},
        {"ip": "0.0.0.0"},
        {"ip": "ff02::1"},
        {"ip": "::"},
        {"ip": "::ffff:224.0.0.251"},
        {"ip": "fe80::1%eth0"},
        {"ip": "example.org"},
        {"ip": "192.0.2.1.5"},
    ],
    ids=str,
)
def test_candidates_that_are_of_no_use_are_left_out(parts: dict[str, Any]) -> None:
    chosen, left_out = CandidateFilter(["0"]).choose([candidate(1, **parts)])

    assert (chosen, left_out) == ([], 0)


def test_at_most_64_different_candidates_are_tried() -> None:
    candidates = CandidateFilter(["0"])

    first, _ = candidates.choose([candidate(n) for n in range(1, 41)])
    again, left_out_again = candidates.choose([candidate(n) for n in range(1, 41)])
    more, left_out = candidates.choose([candidate(n) for n in range(41, 81)])

    assert (len(first), len(again), len(more)) == (40, 0, MAX_CANDIDATES - 40)
    assert (left_out_again, left_out) == (0, 80 - MAX_CANDIDATES)


def test_names_count_like_addresses() -> None:
    candidates = CandidateFilter(["0"])

    chosen, left_out = candidates.choose([candidate(n, ip=f"name-{n}.local") for n in range(70)])

    assert (len(chosen), left_out) == (MAX_CANDIDATES, 70 - MAX_CANDIDATES)
    assert not candidates.has_addresses


def test_very_many_candidates_are_refused_unread() -> None:
    with pytest.raises(ApiError, match="at most 64") as caught:
        CandidateFilter(["0"]).choose([{"candidate": "garbage"}] * 2000)

    assert caught.value.status == 400


def test_a_section_is_known_by_its_mid_or_else_by_its_place() -> None:
    candidates = CandidateFilter(["audio", "video", "data"], bundled=["data"])
    entries = [
        candidate(1) | {"sdpMid": "video"},
        candidate(2) | {"sdpMid": None, "sdpMLineIndex": 1},
        candidate(3) | {"sdpMid": "data"},
        candidate(4) | {"sdpMid": "unknown", "sdpMLineIndex": 7},
    ]

    chosen, _ = candidates.choose(entries)

    assert [(c.ip, c.sdpMid) for c in chosen if c] == [("192.0.2.1", "video"), ("192.0.2.2", "video")]


async def test_candidates_are_taken_out_of_the_offer() -> None:
    offer = read_offer(await offered("sendrecv") + f"a={NAME}\r\na=end-of-candidates\r\n", "offer")

    assert "a=candidate" not in offer.sdp
    assert "end-of-candidates" not in offer.sdp
    assert offer.candidates[-1] is None
    assert all(c.component == 1 for c in offer.candidates if c)


async def test_an_offer_with_more_than_64_candidates_is_refused() -> None:
    lines = "".join(f"a={candidate(n)['candidate']}\r\n" for n in range(70))
    video = (await offered("sendrecv")).replace("a=mid:0\r\n", f"a=mid:0\r\n{lines}")

    with pytest.raises(ApiError, match="at most 64") as caught:
        read_offer(video, "offer")

    assert caught.value.status == 400


@pytest.mark.parametrize("direction", ["sendrecv", "recvonly"])
async def test_offers_that_can_show_video_pass(direction: str) -> None:
    sdp = await offered(direction)

    assert read_offer(sdp, "offer").viewer == "0"

    with pytest.raises(ApiError, match="must be 'offer'"):
        read_offer(sdp, "answer")


@pytest.mark.parametrize("directions", [["sendonly"], ["inactive"], ["sendonly", "inactive"]], ids=str)
async def test_offers_that_can_show_nothing_are_refused(directions: list[str]) -> None:
    sdp = await offered(*directions)

    with pytest.raises(ApiError, match=" and ".join(directions)):
        read_offer(sdp, "offer")


@pytest.mark.parametrize(
    ("directions", "viewer", "camera", "ours"),
    [
        (["sendrecv"], "0", "0", ["sendrecv"]),
        (["recvonly"], "0", None, ["sendonly"]),
        (["sendonly", "recvonly"], "1", "0", ["recvonly", "sendonly"]),
        (["recvonly", "sendonly"], "0", "1", ["sendonly", "recvonly"]),
        (["sendrecv", "sendrecv"], "0", "0", ["sendrecv", "inactive"]),
        (["sendonly", "sendonly", "recvonly"], "2", "0", ["recvonly", "inactive", "sendonly"]),
        (["sendonly", "sendrecv"], "1", "0", ["recvonly", "sendonly"]),
        (["inactive", "sendrecv"], "1", "1", ["inactive", "sendrecv"]),
        (["recvonly", "recvonly"], "0", None, ["sendonly", "inactive"]),
    ],
    ids=str,
)
async def test_one_section_shows_and_one_brings_video(
    directions: list[str], viewer: str, camera: str | None, ours: list[str]
) -> None:
    offer = read_offer(await offered(*directions), "offer")
    answer = SessionDescription.parse(await answered(offer))

    assert (offer.viewer, offer.camera) == (viewer, camera)
    assert [m.direction for m in answer.media if m.kind == "video"] == ours


async def test_a_section_without_a_direction_sends_and_receives() -> None:
    sdp = (await offered("sendrecv")).replace("a=sendrecv\r\n", "")

    offer = read_offer(sdp, "offer")

    assert (offer.viewer, offer.camera) == ("0", "0")


@pytest.mark.parametrize("sdp", ["", "v=0", "<html>", "v=0\r\nm=video\r\n", "\x00" * 10])
def test_text_that_is_no_offer_is_refused(sdp: str) -> None:
    with pytest.raises(ApiError, match="Invalid SDP offer") as caught:
        read_offer(sdp, "offer")

    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [("ice-ufrag", "ice-ufrag"), ("ice-pwd", "ice-pwd"), ("fingerprint", "fingerprint"), ("setup", "setup")],
)
async def test_offers_without_a_transport_are_refused(attribute: str, reason: str) -> None:
    lines = (await offered("sendrecv")).splitlines(keepends=True)

    with pytest.raises(ApiError, match=reason):
        read_offer("".join(line for line in lines if not line.startswith(f"a={attribute}:")), "offer")


async def test_offers_with_one_mid_twice_are_refused() -> None:
    sdp = await offered("sendrecv", "sendrecv")

    with pytest.raises(ApiError, match="same mid"):
        read_offer(sdp.replace("a=mid:1", "a=mid:0"), "offer")


async def test_offers_without_a_common_codec_are_refused() -> None:
    sdp = (await offered("sendrecv")).replace("VP8", "VP9").replace("H264", "AV1")

    with pytest.raises(ApiError, match="VP8 or H264"):
        read_offer(sdp, "offer")


@pytest.mark.parametrize(
    ("fmtp", "profile"),
    [
        ("level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=640c1f", "640c1f"),
        ("level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=4d001f", "4d001f"),
        ("profile-level-id=64001E; packetization-mode=1", "64001E"),
        ("packetization-mode=1;profile-level-id=f4001f;sprop-parameter-sets=Z2QAH6w=,aO48gA==", "f4001f"),
        ("packetization-mode=1; profile-level-id=42001f", "42001f"),
        ("packetization-mode=1", "42e01f"),
    ],
)
async def test_h264_of_any_profile_is_answered_with_that_profile(fmtp: str, profile: str) -> None:
    offer = read_offer(with_fmtp(await offered("sendrecv"), fmtp), "offer")

    video = SessionDescription.parse(await answered(offer)).media[0]

    h264 = [codec for codec in video.rtp.codecs if codec.name == "H264"]
    assert h264
    assert {codec.parameters["profile-level-id"] for codec in h264} == {profile}
    assert {codec.parameters["packetization-mode"] for codec in h264} == {"1"}


@pytest.mark.parametrize("fmtp", ["packetization-mode=0;profile-level-id=42e01f", "profile-level-id=42e01f"])
async def test_h264_without_fragments_is_refused_with_what_to_offer(fmtp: str) -> None:
    sdp = with_fmtp(await offered("sendrecv"), fmtp)

    with pytest.raises(ApiError, match="packetization-mode=1"):
        read_offer(sdp, "offer")


async def test_sections_of_no_use_are_refused_in_their_places() -> None:
    sdp = await offered("sendrecv", kinds=["audio", "video"])
    audio, first, second, data = sdp.split("m=")[1:]
    unknown = first.replace("VP8", "VP9").replace("H264", "AV1")
    text = "m=text 9 UDP/TLS/RTP/SAVPF 98\r\na=mid:9\r\na=rtpmap:98 t140/1000\r\n"
    sdp = sdp.split("m=")[0] + text + "".join(f"m={part}" for part in (unknown, audio, second, data))

    offer = read_offer(sdp, "offer")
    answer = await answered(offer)

    assert offer.viewer == "2"
    sections = [part.splitlines() for part in answer.split("m=")[1:]]
    assert [lines[0].split()[0] for lines in sections] == ["text", "video", "audio", "video", "application"]
    assert [lines[0].split()[1] == "0" for lines in sections] == [True, True, False, False, False]
    assert "a=group:BUNDLE 0 2 3\r\n" in answer
