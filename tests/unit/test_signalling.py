"""Offers and candidates as text."""

import pytest
from aiortc import RTCPeerConnection

from gateway.errors import ApiError
from gateway.webrtc.signalling import check_offer, parse_candidate, split_mdns_candidates

HOST = "candidate:1 1 UDP 2122252543 192.0.2.1 54321 typ host"
NAME = "candidate:2 1 udp 2122252543 b3c2f0c4-0000-4000-8000-000000000000.local 54321 typ host"


async def video_offer(direction: str = "sendrecv") -> str:
    peer = RTCPeerConnection()
    peer.addTransceiver("video", direction=direction)
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp
    await peer.close()
    return sdp


@pytest.mark.parametrize("prefix", ["candidate:", "", "a=candidate:"])
def test_candidates_are_read_with_and_without_prefix(prefix: str) -> None:
    text = prefix + HOST.removeprefix("candidate:")

    candidate = parse_candidate({"candidate": text, "sdpMid": "0", "sdpMLineIndex": None})

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


async def test_names_are_taken_out_of_the_offer() -> None:
    sdp = await video_offer()
    with_name = sdp + f"a={NAME}\r\na=end-of-candidates\r\n"

    kept, names = split_mdns_candidates(with_name)

    assert ".local" not in kept
    assert "end-of-candidates" not in kept
    assert [(n["sdpMLineIndex"], n["candidate"]) for n in names] == [(0, f"a={NAME}")]


async def test_an_offer_without_names_is_left_alone() -> None:
    sdp = await video_offer()

    assert split_mdns_candidates(sdp) == (sdp, [])


@pytest.mark.parametrize("direction", ["sendrecv", "recvonly"])
async def test_offers_that_can_show_video_pass(direction: str) -> None:
    sdp = await video_offer(direction)

    check_offer(sdp, "offer")

    with pytest.raises(ApiError, match="must be 'offer'"):
        check_offer(sdp, "answer")


@pytest.mark.parametrize("direction", ["sendonly", "inactive"])
async def test_offers_that_can_show_nothing_are_refused(direction: str) -> None:
    sdp = await video_offer(direction)

    with pytest.raises(ApiError, match=direction):
        check_offer(sdp, "offer")


@pytest.mark.parametrize("sdp", ["", "v=0", "<html>", "v=0\r\nm=video\r\n", "\x00" * 10])
def test_text_that_is_no_offer_is_refused(sdp: str) -> None:
    with pytest.raises(ApiError, match="Invalid SDP offer") as caught:
        check_offer(sdp, "offer")

    assert caught.value.status == 400


async def test_offers_without_a_common_codec_are_refused() -> None:
    sdp = (await video_offer()).replace("VP8", "VP9").replace("H264", "AV1")

    with pytest.raises(ApiError, match="VP8 or H264"):
        check_offer(sdp, "offer")
