"""Offers of publishers and players, and the fragments in which they trickle, as text."""

import random
import re
from collections.abc import Callable

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from gateway.errors import ApiError
from gateway.webrtc.signalling import Offer
from gateway.whip.fragments import read_fragment
from gateway.whip.offers import read_player_offer, read_publisher_offer

MUTATIONS = 2000
JUNK = ["\0", " ", ":", ";", "=", "/", "é", "\u2028", "9" * 30, "-1", "%s", "a=mid:0\r\n"]
HOST = "candidate:1 1 udp 2122252543 192.0.2.1 54321 typ host"


async def offered(*sections: tuple[str, str], data: bool = False) -> str:
    """An offer of aiortc's with sections of these kinds and directions."""
    peer = RTCPeerConnection()
    for kind, direction in sections:
        peer.addTransceiver(kind, direction=direction)
    if data:
        peer.createDataChannel("events")
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp
    await peer.close()
    return sdp


async def answered(offer: Offer) -> list[str]:
    """The sections that aiortc answers to it."""
    peer = RTCPeerConnection()
    await peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
    for transceiver in peer.getTransceivers():
        transceiver.direction = offer.direction(transceiver.mid)
    await peer.setLocalDescription(await peer.createAnswer())
    answer = offer.complete(peer.localDescription.sdp)
    await peer.close()
    return re.split(r"(?=m=)", answer)[1:]


def refusal(read: Callable[[str], object], sdp: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(sdp)
    return caught.value


def only_h264(sdp: str, fmtp: str) -> str:
    sdp = sdp.replace("VP8/90000", "VP9/90000")
    return re.sub(r"level-asymmetry-allowed=\S+", fmtp, sdp)


@pytest.mark.parametrize("direction", ["sendonly", "sendrecv"])
async def test_a_publisher_sends_video_and_its_sound_is_taken_unread(direction: str) -> None:
    offer = read_publisher_offer(await offered(("audio", direction), ("video", direction)))

    audio, video = await answered(offer)

    assert (offer.viewer, offer.camera, offer.unread) == (None, "1", {"0"})
    assert "a=recvonly" in audio
    assert "a=recvonly" in video


async def test_a_publishers_data_channel_is_refused_and_its_video_taken() -> None:
    video, data = await answered(read_publisher_offer(await offered(("video", "sendonly"), data=True)))

    assert "a=recvonly" in video
    assert data.startswith("m=application 0 ")


@pytest.mark.parametrize("direction", ["recvonly", "inactive"])
async def test_a_publisher_that_sends_nothing_is_told_so(direction: str) -> None:
    error = refusal(read_publisher_offer, await offered(("video", direction)))

    assert (error.status, f"is {direction}" in error.detail) == (400, True)


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ([("audio", "sendonly")], "no video"),
        ([("video", "sendonly"), ("video", "sendonly")], "more than one"),
        ([("video", "sendonly"), ("audio", "sendonly"), ("audio", "sendonly")], "more than one"),
    ],
)
async def test_what_would_be_published_in_part_is_refused(sections: list[tuple[str, str]], text: str) -> None:
    error = refusal(read_publisher_offer, await offered(*sections))

    assert (error.status, text in error.detail) == (422, True)


@pytest.mark.parametrize(
    "lines",
    ["a=rid:h send\r\na=rid:l send\r\na=simulcast:send h;l\r\n", "a=rid:1 send\r\na=rid:2 send\r\n"],
)
async def test_simulcast_is_refused(lines: str) -> None:
    sdp = await offered(("video", "sendonly"))

    error = refusal(read_publisher_offer, sdp + lines)

    assert (error.status, "one layer" in error.detail) == (422, True)


async def test_one_layer_with_a_name_is_no_simulcast() -> None:
    assert read_publisher_offer(await offered(("video", "sendonly")) + "a=rid:1 send\r\n").camera == "0"


@pytest.mark.parametrize("profile", ["4d001f", "64001f", "640c1f"])
async def test_h264_of_any_profile_is_taken_and_answered_by_its_name(profile: str) -> None:
    fmtp = f"level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile}"
    sdp = only_h264(await offered(("video", "sendonly")), fmtp)

    [video] = await answered(read_publisher_offer(sdp))

    assert f"profile-level-id={profile}" in video


@pytest.mark.parametrize(
    "change",
    [
        lambda sdp: only_h264(sdp, "packetization-mode=0;profile-level-id=42e01f"),
        lambda sdp: only_h264(sdp, "").replace("H264/90000", "H265/90000"),
        lambda sdp: only_h264(sdp, "").replace("H264/90000", "AV1/90000"),
    ],
    ids=["mode 0", "H265", "AV1"],
)
async def test_other_codecs_are_refused_with_what_to_send(change: Callable[[str], str]) -> None:
    sending, receiving = await offered(("video", "sendonly")), await offered(("video", "recvonly"))

    errors = [refusal(read_publisher_offer, change(sending)), refusal(read_player_offer, change(receiving))]

    assert [(error.status, "H264" in error.detail) for error in errors] == [(422, True), (422, True)]


async def test_a_player_sees_the_video_and_other_sections_stay_inactive() -> None:
    sdp = await offered(("audio", "recvonly"), ("video", "recvonly"), data=True)

    audio, video, data = await answered(read_player_offer(sdp))

    assert "a=inactive" in audio
    assert "a=sendonly" in video
    assert "a=msid:" in video
    assert not data.startswith("m=application 0 ")


@pytest.mark.parametrize(("kind", "direction"), [("video", "sendonly"), ("audio", "recvonly")])
async def test_a_player_that_could_see_nothing_is_refused(kind: str, direction: str) -> None:
    assert refusal(read_player_offer, await offered((kind, direction))).status == 400


@pytest.mark.parametrize(("setup", "ours"), [("actpass", {"0"}), ("active", set()), ("passive", set())])
async def test_only_an_offer_that_leaves_it_to_us_lets_us_choose_who_begins_dtls(
    setup: str, ours: set[str]
) -> None:
    sdp = (await offered(("video", "sendonly"))).replace("a=setup:actpass", f"a=setup:{setup}")

    assert read_publisher_offer(sdp).actpass == ours


def mutated(text: str, random: random.Random) -> str:
    """`text` with a few lines or characters lost, doubled, swapped or replaced."""
    lines = text.splitlines(keepends=True)
    for _ in range(random.randint(1, 4)):
        i, j = random.randrange(len(lines)), random.randrange(len(lines))
        position = random.randrange(len(lines[i]) + 1)
        junk = random.choice(
            ["\0", " ", ":", ";", "=", "/", "é", "\u2028", "9" * 30, "-1", "%s", "a=mid:0\r\n"]
        )
        match random.randrange(6):
            case 0 if len(lines) > 1:
                del lines[i]
            case 1:
                lines.insert(j, lines[i])
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
            case 3:
                lines[i] = lines[i][:position] + junk + lines[i][position:]
            case 4:
                lines[i] = lines[i][:position] + junk + lines[i][position + 1 :]
            case _:
                lines[i] = lines[i][:position] + "\r\n"
    return "".join(lines)


@pytest.mark.parametrize(
    ("read", "direction"), [(read_publisher_offer, "sendonly"), (read_player_offer, "recvonly")]
)
async def test_damaged_offers_are_read_or_refused(read: Callable[[str], Offer], direction: str) -> None:
    rng = random.Random(25)
    whole = await offered(("audio", direction), ("video", direction), data=True)
    read_well, statuses = 0, set()
    for _ in range(MUTATIONS):
        try:
            read(mutated(whole, rng))
            read_well += 1
        except ApiError as error:
            statuses.add(error.status)

    assert read_well
    assert statuses == {400, 422}


def test_a_fragment_tells_candidates_their_sections_and_the_end() -> None:
    fragment = read_fragment(
        "a=ice-ufrag:abcd\r\na=ice-pwd:secret\r\n"
        f"m=audio 9 RTP/AVP 0\r\na=mid:0\r\na={HOST}\r\n"
        f"m=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:1\r\na={HOST}\r\na=end-of-candidates\r\n"
    )

    assert fragment.credentials == {"abcd", "secret"}
    assert fragment.candidates == ((f"a={HOST}", "0"), (f"a={HOST}", "1"))
    assert fragment.ended
    assert [entry.get("sdpMid") for entry in fragment.entries({"0": "0", "1": "0"})] == ["0", "0", None]


def test_candidates_before_any_section_belong_to_the_default_one() -> None:
    fragment = read_fragment(f"a={HOST}")

    assert [entry["sdpMid"] for entry in fragment.entries({"a": "v"})] == ["v"]


@pytest.mark.parametrize(
    "text", ["", "\r\n", "a=candidate:\r\n", "a=candidate:1 1 udp\r\n", "nonsense", "a=mid"]
)
def test_what_is_of_no_use_in_a_fragment_is_left_out(text: str) -> None:
    assert read_fragment(text).candidates == ()


def test_damaged_fragments_are_read() -> None:
    rng = random.Random(25)
    whole = (
        f"a=ice-ufrag:abcd\r\na=ice-pwd:secret\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\na={HOST}\r\na={HOST}\r\n"
    )

    fragments = [read_fragment(mutated(whole, rng)) for _ in range(MUTATIONS)]

    assert any(fragment.candidates for fragment in fragments)
    assert any(not fragment.candidates for fragment in fragments)
