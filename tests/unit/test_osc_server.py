"""OSC on its way to streams: what messages mean, what is gathered, who is heard."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pythonosc.udp_client import SimpleUDPClient

from gateway.config import Config, Osc
from gateway.errors import ApiError, Problem
from gateway.osc.addresses import KEYS
from gateway.osc.desk import Desk, Surroundings
from gateway.osc.limits import PER_ADDRESS, TOTAL, Limits
from gateway.osc.server import OscServer, Show
from gateway.osc.wire import Impulse, OscError
from gateway.pipelines.state import Pipelines
from gateway.stream.parameters.checks import FIELDS, WISHES
from gateway.stream.parameters.state import ParameterContext, ParameterState
from gateway.stream.parameters.tempo import Tempo
from gateway.stream.seat import COMMANDS
from gateway.stream.stream import Stream
from streaming.errors import WanstreamError
from streaming.specs import LONGLIVE
from tests.server.peer import until
from tests.server.processes import free_port
from tests.unit.test_osc_wire import bundle, message
from tests.unit.test_peer_close import Nobody
from tests.unit.test_pipelines import SlowServing
from tests.unit.test_stream import RecordedControl

AROUND = Surroundings(
    prompts=lambda: [{"text": "of the page", "weight": 2.0}],
    adapters=lambda: [
        "/loras/style.safetensors",
        "/loras/other/style.safetensors",
        "/loras/film.v2.safetensors",
    ],
)


def said(desk: Desk, name: str, *arguments: Any) -> dict[str, Any]:
    return desk.read(name, arguments, AROUND)[0]


def prompts(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"text": text, "weight": weight} for text, weight in pairs]


@pytest.mark.parametrize(
    ("name", "arguments", "values"),
    [
        ("prompt", ["a boat"], {"prompts": prompts(("a boat", 1.0))}),
        ("prompts", ["a", 1.0, "b", 3], {"prompts": prompts(("a", 1.0), ("b", 3))}),
        ("interpolation_method", ["slerp"], {"prompt_interpolation_method": "slerp"}),
        ("prompt_interpolation_method", ["linear"], {"prompt_interpolation_method": "linear"}),
        ("transition_steps", [8.0], {}),
        ("temporal_interpolation_method", ["slerp"], {}),
        ("input_mode", ["video"], {"input_mode": "video"}),
        ("denoising_step_list", [1000, 500.0], {"denoising_step_list": [1000, 500]}),
        ("denoising_step_list", [[1000, 500]], {"denoising_step_list": [1000, 500]}),
        ("noise_scale", [0.699999988079071], {"noise_scale": 0.7}),
        ("noise_scale", [1], {"noise_scale": 1}),
        ("vace_context_scale", [1.5], {"vace_context_scale": 1.5}),
        ("kv_cache_attention_bias", [0.25], {"kv_cache_attention_bias": 0.25}),
        ("base_seed", [7.0], {"base_seed": 7}),
        ("noise_controller", [0], {"noise_controller": False}),
        ("manage_cache", [0.5], {"manage_cache": True}),
        ("paused", [True], {"paused": True}),
        ("reset_cache", [], {"reset_cache": True}),
        ("reset_cache", [Impulse.IMPULSE], {"reset_cache": True}),
        ("reset_cache", [1.0], {"reset_cache": True}),
        ("reset_cache", [False], {"reset_cache": False}),
        (
            "lora/film.v2/scale",
            [0.5],
            {"lora_scales": [{"path": "/loras/film.v2.safetensors", "scale": 0.5}]},
        ),
        (
            "lora/style/scale",
            [1],
            {
                "lora_scales": [
                    {"path": "/loras/style.safetensors", "scale": 1},
                    {"path": "/loras/other/style.safetensors", "scale": 1},
                ]
            },
        ),
        ("vace_ref_images", ["a.png", "b.png"], {"vace_ref_images": ["a.png", "b.png"]}),
    ],
)
def test_a_key_becomes_a_parameter(name: str, arguments: list[Any], values: dict[str, Any]) -> None:
    assert said(Desk(), name, *arguments) == values


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("noise_scale", ["loud"], "type"),
        ("noise_scale", [True], "type"),
        ("noise_scale", [], "type"),
        ("noise_scale", [0.1, 0.2], "type"),
        ("noise_scale", [1.5], "range"),
        ("noise_scale", [float("nan")], "range"),
        ("noise_scale", [None], "type"),
        ("base_seed", [1.5], "type"),
        ("base_seed", [-1], "range"),
        ("base_seed", [float("inf")], "type"),
        ("paused", ["yes"], "type"),
        ("paused", [Impulse.IMPULSE], "type"),
        ("input_mode", ["dream"], "range"),
        ("input_mode", [1], "type"),
        ("denoising_step_list", [500, 1000], "range"),
        ("denoising_step_list", [], "range"),
        ("denoising_step_list", [[[1000]]], "type"),
        ("prompt", [b"bytes"], "type"),
        ("prompt", ["a\x01b"], "range"),
        ("prompt", ["a" * 9000], "range"),
        ("prompt/16/text", ["a"], "address"),
        ("prompt/-1/text", ["a"], "address"),
        ("prompt/0/colour", ["a"], "address"),
        ("prompt/0/weight", [-1.0], "range"),
        ("prompts", ["a"], "type"),
        ("prompts", ["a", "b"], "type"),
        ("prompts", [], "range"),
        ("prompts", [x for i in range(17) for x in (str(i), 1.0)], "range"),
        ("transition_steps", [1001], "range"),
        ("temporal_interpolation_method", ["cubic"], "range"),
        ("lora/none/scale", [1.0], "address"),
        ("lora/style/scale", [11.0], "range"),
        ("lora/style/scale", [float("nan")], "range"),
        ("pipeline_ids", ["longlive"], "address"),
        ("height", [64], "address"),
        ("", [1], "address"),
    ],
)
def test_a_wrong_value_is_refused_and_not_remembered(name: str, arguments: list[Any], reason: str) -> None:
    desk = Desk()

    with pytest.raises(OscError) as caught:
        said(desk, name, *arguments)

    assert caught.value.reason == reason
    assert desk == Desk()


def test_every_live_parameter_of_a_plain_type_has_an_address() -> None:
    objects = {"prompts", "transition", "lora_scales"} | WISHES

    fields = {key.field for key in KEYS if key.name == key.field}

    assert fields == FIELDS.keys() - objects - COMMANDS - {"pipeline_ids"}


def test_items_of_a_prompt_are_kept_from_one_message_to_the_next() -> None:
    desk = Desk()

    assert said(desk, "prompt/1/weight", 3.0) == {"prompts": prompts(("of the page", 2.0))}
    assert said(desk, "prompt/1/text", "rain") == {"prompts": prompts(("of the page", 2.0), ("rain", 3.0))}
    assert said(desk, "prompt/0/weight", 0.5) == {"prompts": prompts(("of the page", 0.5), ("rain", 3.0))}
    assert said(desk, "prompt/0/text", "") == {"prompts": prompts(("rain", 3.0))}
    assert said(desk, "prompt", "sun") == {"prompts": prompts(("sun", 1.0))}
    assert said(desk, "prompt/1/text", "fog") == {"prompts": prompts(("sun", 1.0), ("fog", 1.0))}


def test_a_prompt_moves_over_the_steps_that_were_set_before() -> None:
    desk = Desk()
    said(desk, "transition_steps", 8)
    said(desk, "temporal_interpolation_method", "slerp")

    moved = said(desk, "prompt", "night")
    said(desk, "transition_steps", 0)

    transition = {"target_prompts": prompts(("night", 1.0)), "num_steps": 8}
    assert moved == {"transition": {**transition, "temporal_interpolation_method": "slerp"}}
    assert said(desk, "prompt", "day") == {"prompts": prompts(("day", 1.0))}


class RecordedStream(Stream):
    """A stream that never begins. busy: updates wait for it."""

    def __init__(self, stream_id: str, directory: Path) -> None:
        context = ParameterContext(LONGLIVE, {"height": 64, "width": 64}, directory)
        pipelines = Pipelines(SlowServing(), load_timeout_s=60)
        super().__init__(stream_id, pipelines, ParameterState.open(context, None), Nobody())
        self.updates: list[dict[str, Any]] = []
        self.busy = asyncio.Lock()
        self.fails = False

    async def update(self, values: dict[str, Any], *rest: Any, **named: Any) -> list[Problem]:
        if self.fails:
            raise RuntimeError("the stream was told to fail")
        async with self.busy:
            self.updates.append(dict(values))
            return await super().update(values, *rest, **named)


class Table:
    def __init__(self, *streams: RecordedStream) -> None:
        self.streams = list(streams)
        self.tempo = Tempo()

    def __iter__(self) -> Iterator[Stream]:
        return iter(self.streams)

    def find(self, stream_id: str) -> Stream:
        for stream in self.streams:
            if stream.id == stream_id:
                return stream
        raise ApiError(404, f"Stream {stream_id} not found")


@pytest.fixture
def streams(tmp_path: Path) -> Table:
    return Table(RecordedStream("left", tmp_path), RecordedStream("right", tmp_path))


@contextlib.asynccontextmanager
async def running(
    streams: Table,
    settings: Osc | None = None,
    port: int | None = None,
    host: str = "127.0.0.1",
    **options: Any,
) -> AsyncIterator[OscServer]:
    pipelines = Pipelines(SlowServing(), load_timeout_s=60)
    osc = OscServer(settings or Osc(), (host, port or free_port()), streams, pipelines, **options)
    await osc.start()
    try:
        yield osc
    finally:
        await osc.close()


def seed_of(stream: Stream) -> int:
    return int(stream.state.effective["base_seed"])


async def test_scope_s_addresses_reach_all_streams_and_ours_one(streams: Table) -> None:
    async with running(streams) as osc:
        client = SimpleUDPClient(*osc.address)
        client.send_message("/scope/base_seed", 5)
        client.send_message("/wanstream/right/base_seed", 6)
        client.send_message("/wanstream/all/noise_scale", 0.25)

        await until(lambda: osc.counts["applied"] == 3, 30, "three messages")
        await until(lambda: [seed_of(s) for s in streams] == [5, 6], 30, "the seeds")

        assert [s.state.effective["noise_scale"] for s in streams] == [0.25, 0.25]


@pytest.mark.parametrize(
    "address",
    [
        *(
            "/scope/noise*",
            "/wanstream/*/noise_scale",
            "/wanstream/{left,right}/noise_scale",
            "/scope/[n]oise",
        ),
        *(
            "/wanstream/middle/noise_scale",
            "/wanstream/UPPER/noise_scale",
            "/other/noise_scale",
            "/",
            "/scope",
        ),
        *("/wanstream/left", "/scope/" + "x" * 300, "/scope/noise_scale/"),
    ],
)
async def test_an_address_that_reaches_nothing_is_counted(address: str, streams: Table) -> None:
    async with running(streams) as osc:
        osc.receive(message(address, 0.5), "127.0.0.1")

        assert osc.counts == {"address": 1}
        [refused] = osc.status()["recent"]
        assert refused["reason"] == "address"
        assert address.startswith(refused["address"].removesuffix("…"))


async def test_a_bundle_is_one_update_and_so_is_what_comes_within_a_tick(streams: Table) -> None:
    [left, _] = streams.streams
    async with running(streams) as osc:
        async with left.busy:  # an update is on its way
            osc.receive(message("/scope/paused", False), "127.0.0.1")
            await until(lambda: not osc._updates, 30, "the tick")
            for i in range(500):
                osc.receive(message("/scope/noise_scale", i / 1000), "127.0.0.1")
            parts = [
                message("/scope/reset_cache"),
                message("/scope/prompt", "a"),
                message("/scope/base_seed", 3),
            ]
            osc.receive(bundle(*parts), "127.0.0.1")
            osc.receive(message("/scope/noise_scale", 7.0), "127.0.0.1")  # wrong: the one before stays

        await until(lambda: len(left.updates) == 2, 30, "the second update")
        await until(lambda: seed_of(left) == 3, 30, "its end")

        assert left.updates[0] == {"paused": False}
        expected = {"noise_scale": 0.499, "reset_cache": True, "prompts": prompts(("a", 1.0)), "base_seed": 3}
        assert left.updates[1] == expected


async def test_a_bundle_waits_for_its_time_and_one_of_the_far_future_does_not(streams: Table) -> None:
    async with running(streams) as osc:
        soon, far, past = (time.time() + ahead for ahead in (0.9, 60.0, -60.0))
        osc.receive(bundle(message("/wanstream/left/base_seed", 1), due=soon), "127.0.0.1")
        at_once = osc.counts["applied"]
        osc.receive(bundle(message("/wanstream/right/base_seed", 2), due=far), "127.0.0.1")
        osc.receive(bundle(message("/wanstream/right/noise_scale", 0.1), due=past), "127.0.0.1")

        assert (at_once, osc.counts["applied"], osc.counts["time"]) == (0, 2, 1)
        await until(lambda: seed_of(streams.streams[0]) == 1, 30, "the bundle's time")


async def test_errors_are_counted_and_remembered_without_values(
    streams: Table, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    async with running(streams) as osc:
        caplog.clear()
        for _ in range(60):
            osc.receive(message("/scope/noise_scale", "a secret"), "127.0.0.1")
        osc.receive(b"\xff\xfe", "127.0.0.1")
        osc.receive(message("/scope/vace_enabled", True), "127.0.0.1")  # longlive was loaded without VACE
        osc.receive(message("/scope/base_seed", 9), "127.0.0.1")
        await until(lambda: all(seed_of(stream) == 9 for stream in streams), 30, "what is right")
        status = osc.status()

        assert status["counts"] == {"type": 60, "parse": 1, "applied": 2, "refused": 2}
        assert len(status["recent"]) == 50
        assert [r["reason"] for r in status["recent"]][-3:] == ["parse", "refused", "refused"]
        assert status["recent"][-1]["address"] == "/scope/vace_enabled"
        assert "a secret" not in str(status)
        assert caplog.text == ""
        osc.log_all_messages = True
        osc.receive(message("/scope/prompt", "shown"), "127.0.0.1")
        assert "/scope/prompt ['shown']" in caplog.text


async def test_the_others_are_told_what_osc_changed(streams: Table) -> None:
    control = RecordedControl()
    streams.streams[0].add_control(control)
    async with running(streams) as osc:
        osc.receive(
            bundle(message("/scope/noise_scale", 0.5), message("/scope/vace_enabled", 1)), "127.0.0.1"
        )

        await until(lambda: control.messages, 30, "a message")

    assert control.messages == [{"type": "parameters_updated", "parameters": {"noise_scale": 0.5}}]


async def test_a_stream_that_fails_does_not_silence_the_others(streams: Table) -> None:
    streams.streams[0].fails = True
    async with running(streams) as osc:
        for seed in (1, 2):
            osc.receive(message("/scope/base_seed", seed), "127.0.0.1")
            await until(lambda seed=seed: seed_of(streams.streams[1]) == seed, 30, "the other stream")


async def test_a_new_stream_takes_over_what_was_set_for_all(streams: Table, tmp_path: Path) -> None:
    async with running(streams) as osc:
        osc.receive(message("/scope/transition_steps", 5), "127.0.0.1")
        osc.receive(message("/wanstream/left/transition_steps", 2), "127.0.0.1")
        streams.streams[1] = RecordedStream("new", tmp_path)
        osc.receive(message("/scope/prompt", "night"), "127.0.0.1")

        await until(lambda: all(stream.updates for stream in streams.streams), 30, "the prompts")

        assert [s.updates[0]["transition"]["num_steps"] for s in streams.streams] == [2, 5]


async def test_a_cue_is_played_once_a_tick_after_what_was_set_with_it(streams: Table) -> None:
    played: list[tuple[str, str, int]] = []

    async def play(stream: Stream, name: str) -> list[Problem]:
        if name == "missing":
            raise ApiError(404, "There is no cue list")
        played.append((stream.id, name, seed_of(stream)))
        return [Problem(loc=["images"], msg="it is gone", type="file_not_found")] if name == "bad" else []

    async with running(streams, show=Show(cue=play)) as osc:
        for address, value in (
            *(("left/cue/night-1", 1.0), ("left/cue/night-1", True), ("left/base_seed", 5)),
            *(("left/cue/night-1", 0.0), ("all/cue/bad", 7), ("right/cue/missing", 1)),
            *(("left/cue/..", 1), ("left/cue/Night", 1), ("left/cue/night-1", "x")),
        ):
            osc.receive(message(f"/wanstream/{address}", value), "127.0.0.1")
        await until(lambda: (osc.counts["refused"], osc.counts["address"]) == (2, 3), 30, "the cues")

        assert sorted(played) == [
            ("left", "bad", 5),
            ("left", "night-1", 5),
            ("right", "bad", LONGLIVE.base_seed),
        ]
        assert osc.counts["type"] == 1
        addresses = [entry["address"] for entry in osc.status()["recent"]]
        assert "/wanstream/right/cue/missing" in addresses


async def test_the_tempo_is_one_for_all_streams(streams: Table) -> None:
    streams.tempo = Tempo(clock=lambda: 0.0)  # it stands still
    async with running(streams) as osc:
        for address, value in (
            ("tempo/bpm", 90.0),
            ("tempo/bpm", 1000.0),
            ("tempo/tap", 1),
            ("tempo/bpm", "x"),
            ("tempo/beat", 3.5),
            ("tempo/beat", 0.5),
        ):
            osc.receive(message(f"/wanstream/left/{address}", value), "127.0.0.1")
        osc.receive(message("/wanstream/left/tempo/quantize", "bar"), "127.0.0.1")
        await until(lambda: streams.streams[0].updates, 30, "the mode")

        status = streams.tempo.status()
        assert osc.counts == {"applied": 4, "range": 2, "type": 1}
        assert streams.tempo.position % 4 == pytest.approx(2.5)
        assert (status["enabled"], status["source"], status["bpm"]) == (True, "osc", 90.0)
        assert [stream.state.timing for stream in streams] == [{"quantize_mode": "bar"}, {}]


@pytest.mark.parametrize(
    ("sender", "reason"),
    [
        *(("127.0.0.1", "applied"), ("192.168.7.7", "applied"), ("::ffff:10.0.0.9", "applied")),
        *(("fe80::1%eth0", "applied"), ("8.8.8.8", "denied"), ("2001:db8::1", "denied")),
    ],
)
async def test_only_neighbours_are_heard(sender: str, reason: str, streams: Table) -> None:
    async with running(streams) as osc:
        osc.receive(message("/scope/noise_scale", 0.5), sender)

        assert osc.counts == {reason: 1}


async def test_networks_that_are_named_are_heard_alone(streams: Table) -> None:
    settings = replace(Osc(), allow=(ipaddress.ip_network("8.8.0.0/16"),))
    async with running(streams, settings) as osc:
        for sender in ("8.8.8.8", "127.0.0.1"):
            osc.receive(message("/scope/noise_scale", 0.5), sender)

        assert osc.counts == {"applied": 1, "denied": 1}


def refusals(limits: Limits, senders: Iterable[str], size: int = 100) -> int:
    reasons = []
    for sender in senders:
        try:
            limits.check(sender, size)
        except OscError as error:
            reasons.append(error.reason)
    return reasons.count("rate")


def test_an_address_that_floods_is_heard_less() -> None:
    now = 0.0
    limits = Limits(Osc().allow, lambda: now)

    one = refusals(limits, ["10.0.0.1"] * 2 * PER_ADDRESS)
    another = refusals(limits, ["10.0.0.2"] * 10)
    now = 0.5
    later = refusals(limits, ["10.0.0.1"] * PER_ADDRESS)
    now = 100.0
    large = refusals(limits, ["10.0.0.1"] * 100, size=8 << 10)

    assert (one, another, later, large) == (PER_ADDRESS, 0, PER_ADDRESS / 2, 100 - PER_ADDRESS // 33)


def test_a_flood_that_writes_other_addresses_on_it_is_heard_less() -> None:
    limits = Limits(Osc().allow, lambda: 0.0)

    assert refusals(limits, [f"10.1.{i // 250}.{i % 250}" for i in range(2 * TOTAL)]) == TOTAL


async def test_a_port_in_use_is_told_and_the_server_does_without(
    streams: Table, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(streams) as first, running(streams, port=first.address[1]) as second:
        status = second.status()

    assert (status["enabled"], status["listening"]) == (True, False)
    assert "WANSTREAM_OSC" in status["problem"]
    assert "OSC is not heard" in caplog.text


@pytest.mark.parametrize(("host", "warnings"), [("127.0.0.1", 0), ("::1", 0), ("0.0.0.0", 1)])
async def test_a_socket_for_others_is_worth_a_warning(
    host: str, warnings: int, streams: Table, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(streams, host=host) as osc:
        assert osc.status()["listening"]

    assert caplog.text.count("whoever reaches it drives the streams") == warnings


async def test_listeners_hear_what_is_set(streams: Table) -> None:
    async with running(streams) as osc:
        heard = osc.listen()
        coming = asyncio.ensure_future(anext(heard))
        await asyncio.sleep(0)
        for datagram in (message("/scope/noise_scale", "wrong"), message("/wanstream/left/base_seed", 4.0)):
            osc.receive(datagram, "127.0.0.1")

        assert await coming == {"type": "osc_command", "key": "base_seed", "value": 4}
        await heard.aclose()


@pytest.mark.parametrize(
    ("env", "address"),
    [
        ({}, ("127.0.0.1", 8000)),
        ({"WANSTREAM_TOKEN": "t"}, None),
        ({"WANSTREAM_OSC": "off"}, None),
        ({"WANSTREAM_OSC": "9000"}, ("127.0.0.1", 9000)),
        ({"WANSTREAM_OSC": "0.0.0.0:9000", "WANSTREAM_TOKEN": "t"}, ("0.0.0.0", 9000)),
        ({"WANSTREAM_OSC": "[::1]:9000"}, ("::1", 9000)),
    ],
    ids=str,
)
def test_osc_is_heard_on_this_machine_unless_a_token_is_asked_for(
    env: dict[str, str], address: tuple[str, int] | None
) -> None:
    assert Config.from_env(env).osc_address == address


@pytest.mark.parametrize("text", ["yes", "0", "70000", "host:", ":", "1.5", "²"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(WanstreamError, match="WANSTREAM_OSC must be off, PORT or HOST:PORT"):
        Config.from_env({"WANSTREAM_OSC": text})


async def test_datagrams_that_wait_are_all_read_when_a_busy_loop_comes_to_them(streams: Table) -> None:
    async def work() -> None:
        while True:
            time.sleep(0.002)  # noqa: ASYNC251 - as a loop that sends video does
            await asyncio.sleep(0)

    async with running(streams) as osc:
        assert osc.address is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as desk:
            for step in range(200):  # and nothing else runs meanwhile
                desk.sendto(message("/wanstream/left/base_seed", step), osc.address)
        busy = asyncio.create_task(work())
        stream = streams.streams[0]
        await until(lambda: stream.updates and stream.updates[-1] == {"base_seed": 199}, 30, "the last one")
        busy.cancel()

        assert osc.counts == {"applied": 200}
        assert len(stream.updates) == 1, "all in one reading"
