"""What clients send without meaning it, and what servers made with FastAPI put up with."""

import json

import pytest

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until

MARK = b"\xef\xbb\xbf"
PROMPTS = {"prompts": [{"text": "a", "weight": 1.0}]}


def test_a_byte_order_mark_before_json_is_no_fault(double_server: DoubleProcess) -> None:
    body = (
        MARK + json.dumps({"pipeline_id": "longlive", "load_params": {"height": 96, "width": 128}}).encode()
    )
    headers = {"Content-Type": "application/json; charset=utf-8"}

    answer = double_server.client.request("POST", "/api/v1/pipeline/load", body=body, headers=headers)

    assert answer.status == 200, answer.text


def test_a_second_mark_is_a_fault(double_server: DoubleProcess) -> None:
    answer = double_server.client.request("POST", "/api/v1/pipeline/load", body=MARK * 2 + b"{}")

    assert answer.status == 422
    assert answer.json()["detail"][0]["type"] == "json_invalid"


async def test_a_mark_before_a_data_channel_message_is_no_fault(double_server: DoubleProcess) -> None:
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    async with Peer(double_server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(1)

        peer.channel.send("\ufeff" + json.dumps({"noise_scale": 0.5}))
        await peer.wait_frames(20)

        parameters = (await double_server.client.call("GET", "/api/v1/session/parameters")).json()
    assert parameters["parameters"]["noise_scale"] == 0.5


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/api/v1/pipeline/unload/", "/api/v1/pipeline/unload"),
        ("POST", "/api/v1/webrtc/offer/?a=b&c=%20", "/api/v1/webrtc/offer?a=b&c=%20"),
        ("POST", "/api/v1/assets/?filename=a.png", "/api/v1/assets?filename=a.png"),
        ("PATCH", "/api/v1/webrtc/offer/x/", "/api/v1/webrtc/offer/x"),
        ("DELETE", "/api/v1/loras/a%20b/", "/api/v1/loras/a%20b"),
        ("GET", "/health/", "/health"),
        ("GET", "/docs/", "/docs"),
    ],
)
def test_a_slash_too_many_is_led_to_the_right_address(
    double_server: DoubleProcess, method: str, path: str, meant: str
) -> None:
    answer = double_server.client.request(method, path)

    assert (answer.status, answer.headers["location"]) == (307, meant)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/pipeline/status/"),  # Scope answers so
        ("POST", "/api/v1/pipeline/status/"),  # no such method there
        ("POST", "/api/v1/nothing/"),
        ("POST", "//evil.example/"),
        ("GET", "//evil.example/"),
    ],
)
def test_what_is_nowhere_is_not_found(double_server: DoubleProcess, method: str, path: str) -> None:
    answer = double_server.client.request(method, path)

    assert answer.status == 404
    assert "location" not in answer.headers


async def test_a_notation_of_other_programs_gets_one_hint(double_server: DoubleProcess) -> None:
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    async with Peer(double_server.client) as peer:
        await peer.connect({"prompts": [{"text": "a (red:1.3) ball", "weight": 1.0}]})
        hint = await peer.wait_message("parameter_error")
        told = len(peer.messages)
        peer.send({"prompts": ["a <lora:style:0.8> ball"]})
        peer.send({"noise_scale": 3})

        following = await peer.wait_message("parameter_error", since=told)
        await until(lambda: double_server.prompts() == ["a <lora:style:0.8> ball"], 30, "the prompt is used")

    assert [(e["type"], e["loc"]) for e in hint["errors"]] == [("plain_words", ["prompts"])]
    assert "'(red:1.3)' is read as plain words" in hint["errors"][0]["msg"]
    assert [e["loc"] for e in following["errors"]] == [["noise_scale"]]
