"""Spout, NDI and Syphon: NDI for real on this machine, the other two against doubles of their libraries."""

import asyncio
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gateway.config import Config
from gateway.errors import ApiError
from gateway.local_video import ndi, spout, syphon
from gateway.local_video.service import LIBRARIES, LocalVideo
from gateway.local_video.sink import LocalSink
from gateway.local_video.source import LocalSource
from gateway.serving.interface import Images
from gateway.stream.stream import Stream
from tests.server.peer import until
from tests.unit.test_osc_server import RecordedStream
from tests.unit.test_stream import RecordedControl

DOUBLES = Path(__file__).parent.parent / "local_video_doubles"


class Idle(RecordedStream):
    """A stream whose pictures come from the test."""

    def begin(self) -> None:
        pass


@pytest.fixture
def stream(tmp_path: Path) -> Idle:
    return Idle("left", tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Idle:
    return Idle("right", tmp_path)


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The libraries of Windows and macOS, as if they were installed."""
    monkeypatch.syspath_prepend(str(DOUBLES))
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in ("SpoutGL", "syphon")]:
        del sys.modules[name]


@pytest.fixture
def spout_gl(doubles: None) -> ModuleType:
    return importlib.import_module("SpoutGL")


@pytest.fixture(scope="module")
def ndi_network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lets NDI find senders on this machine without mDNS; has to be there before its library is loaded."""
    directory = tmp_path_factory.mktemp("ndi")
    config = {"ndi": {"networks": {"ips": "127.0.0.1"}}}
    (directory / "ndi-config.v1.json").write_text(json.dumps(config))
    assert "cyndilib" not in sys.modules
    os.environ["NDI_CONFIG_DIR"] = str(directory)
    return str(directory)


def on(platform: str, library: ModuleType) -> Any:
    """A library as it is on another operating system."""
    parts = {name: getattr(library, name) for name in ("open_sender", "open_receiver", "senders")}
    return SimpleNamespace(available=lambda: library.available(platform), **parts)


def local_video(*streams: Stream, **libraries: Any) -> LocalVideo:
    return LocalVideo(streams, ndi_allowed=True, libraries={**LIBRARIES, **libraries})


def picture(*rgb: int, height: int = 48, width: int = 64) -> Images:
    image = np.empty((height, width, 3), np.uint8)
    image[:] = rgb
    return image


async def shown(stream: Stream, image: Images, seen: Callable[[], Any], what: str) -> None:
    """Show a picture, again and again as a running stream does, until somebody has seen it."""

    async def look() -> bool:
        stream.output.put(image[None])
        return bool(seen())

    await until(look, 10, what)


def take(stream: Stream) -> Images | None:
    """The newest picture of a stream's input."""
    found = stream.input.take(1)
    return None if found is None else found[0]


def errors_told(control: RecordedControl) -> list[Any]:
    return [error for message in control.messages for error in message.get("errors", ())]


def feed(stream: Stream) -> None:
    """Let a stream take pictures, as one with a pipeline does."""
    stream.input.expect(1, None)


# Sinks


async def test_spout_shows_pictures_upright_and_follows_their_size(
    stream: Idle, spout_gl: ModuleType
) -> None:
    textures = spout_gl.machine.textures
    video = local_video(stream, spout=on("win32", spout))
    sink = await video.set_sink(stream, "spout", True)

    image = picture(10, 20, 30)
    image[0, 1] = 200, 100, 50
    await shown(stream, image, lambda: "ScopeOut" in textures, "the texture")
    first = textures["ScopeOut"].pixels
    larger = picture(1, 2, 3, height=20, width=90)
    await shown(stream, larger, lambda: textures["ScopeOut"].pixels.shape[:2] == (20, 90), "the other size")

    assert first.shape == (48, 64, 4)
    assert (first[..., :3] == image).all()
    assert (first[..., 3] == 255).all()
    assert {key: sink.info[key] for key in ("kind", "name", "state", "width")} == {
        "kind": "spout",
        "name": "ScopeOut",
        "state": "running",
        "width": 90,
    }
    assert await video.set_sink(stream, "spout", False) is None
    assert textures == {}
    assert stream.sinks == ()


async def test_syphon_shows_pictures(stream: Idle, doubles: None) -> None:
    servers = importlib.import_module("syphon").running
    video = local_video(stream, syphon=on("darwin", syphon))
    await video.set_sink(stream, "syphon", True)

    await shown(stream, picture(1, 2, 3), lambda: servers and servers[0].published, "a picture")
    published = servers[0].published.pixels
    await video.set_sink(stream, "syphon", False)

    assert published[0, 0].tolist() == [3, 2, 1, 255]
    assert servers == []


async def test_a_name_that_is_taken_gets_a_number_and_another_name_another_sender(
    stream: Idle, other: Idle, spout_gl: ModuleType
) -> None:
    video = local_video(stream, other, spout=on("win32", spout))

    first = await video.set_sink(stream, "spout", True, "stage")
    second = await video.set_sink(other, "spout", True, "stage")
    same = await video.set_sink(other, "spout", True, "stage")
    renamed = await video.set_sink(stream, "spout", True, "")

    assert (first.name, second.name, renamed.name) == ("stage", "stage 2", "")
    assert same is second
    assert stream.sinks == (renamed,)
    for each in (stream, other):
        await video.set_sink(each, "spout", False)


async def test_a_sink_that_fails_is_told_once_and_tried_again(stream: Idle, spout_gl: ModuleType) -> None:
    control = RecordedControl()
    stream.add_control(control)
    spout_gl.machine.refuse = 2
    told: list[str] = []
    sink = LocalSink("spout", "stage", spout.open_sender, told.append, retry_s=0.01)
    sink.start(stream.output)

    await shown(stream, picture(1, 2, 3), lambda: sink.info["frames"], "a picture after the failures")
    await sink.close()
    await sink.close()

    assert told == ["Spout did not take a picture"]
    assert spout_gl.machine.textures == {}


async def test_a_sink_without_graphics_says_what_is_needed(stream: Idle, spout_gl: ModuleType) -> None:
    control = RecordedControl()
    stream.add_control(control)
    spout_gl.machine.with_opengl = False
    video = local_video(stream, spout=on("win32", spout))

    await video.set_sink(stream, "spout", True)
    await until(lambda: errors_told(control), 30, "the message")
    await video.set_sink(stream, "spout", False)

    [error] = errors_told(control)
    assert error["loc"] == ["output_sinks", "spout"]
    assert "graphics driver" in error["msg"]


# Sources


async def test_spout_brings_pictures_whatever_their_order_and_size(
    stream: Idle, spout_gl: ModuleType
) -> None:
    feed(stream)
    textures = spout_gl.machine.textures
    textures["desk"] = spout_gl.Texture(np.full((48, 64, 4), (10, 20, 30, 255), np.uint8))
    video = local_video(stream, spout=on("win32", spout))

    async def arrives(*rgb: int) -> None:
        def came() -> bool:
            textures["desk"].frame += 1
            found = take(stream)
            return found is not None and tuple(found[0, 0]) == rgb and found.shape == (*size, 3)

        size = textures["desk"].pixels.shape[:2]
        await until(came, 30, f"a picture of {rgb}")

    await video.set_source(stream, "spout", True, "desk")
    await arrives(10, 20, 30)
    bgra = np.full((30, 40, 4), (10, 20, 30, 255), np.uint8)
    textures["desk"] = spout_gl.Texture(bgra, spout_gl.DXGI_BGRA)
    await arrives(30, 20, 10)
    textures["desk"] = spout_gl.Texture(np.full((60, 80, 4), (7, 8, 9, 255), np.uint8))
    await arrives(7, 8, 9)

    assert stream.state.effective["input_mode"] == "video"
    assert {**stream.source.info} == {
        **{"kind": "spout", "name": "desk", "width": 80, "height": 60, "state": "running"}
    }
    await video.set_source(stream, "spout", False)
    assert stream.source is None


async def test_a_source_whose_sender_goes_is_found_again(stream: Idle, spout_gl: ModuleType) -> None:
    feed(stream)
    await stream.update({"input_mode": "video"})
    told: list[str] = []
    textures = spout_gl.machine.textures
    source = LocalSource("spout", "", spout.open_receiver, told.append, retry_s=0.01)
    stream.take_source(source)

    for _ in range(2):
        textures["any"] = spout_gl.Texture(np.full((8, 8, 4), 5, np.uint8))
        await until(lambda: source.info["state"] == "running", 30, "pictures")
        textures.clear()
        await until(lambda: source.info["state"] == "lost", 30, "their end")
    stream.stop_sources()

    assert told == ["The Spout sender 'that was active' has gone"] * 2


async def test_pictures_that_are_too_large_are_refused(stream: Idle, spout_gl: ModuleType) -> None:
    told: list[str] = []
    spout_gl.machine.textures["wall"] = spout_gl.Texture(np.zeros((2160, 3840, 4), np.uint8))
    source = LocalSource("spout", "wall", spout.open_receiver, told.append, retry_s=60)
    stream.take_source(source)

    await until(lambda: told, 30, "the refusal")
    stream.stop_sources()

    assert "3840x2160" in told[0]


async def test_syphon_brings_pictures(stream: Idle, doubles: None) -> None:
    feed(stream)
    await stream.update({"input_mode": "video"})
    library = importlib.import_module("syphon")
    server, told = library.SyphonMetalServer("desk"), []
    texture = library.Texture(64, 48)
    texture.pixels = np.full((48, 64, 4), (1, 2, 3, 255), np.uint8)
    source = LocalSource("syphon", "desk", syphon.open_receiver, told.append, retry_s=0.01)
    stream.take_source(source)

    def came() -> bool:
        server.publish_frame_texture(texture)
        found = take(stream)
        return found is not None and found[0, 0].tolist() == [1, 2, 3]

    await until(came, 30, "a picture")
    server.stop()
    await until(lambda: told, 30, "the end")
    stream.stop_sources()

    assert told[0] == "The Syphon server 'desk' has gone"


# NDI


@pytest.fixture
async def ndi_stream(stream: Idle, ndi_network: str) -> AsyncIterator[Idle]:
    """A stream that NDI shows as `stage`, and that shows pictures all the time."""
    video = local_video(stream)
    await video.set_sink(stream, "ndi", True, "stage")

    async def show() -> None:
        while True:
            stream.output.put(stream.shown[None])
            await asyncio.sleep(0.03)

    stream.shown = picture(200, 100, 50)
    showing = asyncio.create_task(show())
    await until(lambda: stream.sinks[0].info["state"] == "running", 30, "the sender")
    yield stream
    showing.cancel()
    await video.set_sink(stream, "ndi", False)


async def test_ndi_passes_pictures_from_one_stream_to_another(ndi_stream: Idle, other: Idle) -> None:
    feed(other)
    video = local_video(ndi_stream, other)
    await video.set_source(other, "ndi", True, "stage")

    def close_to(*rgb: int) -> bool:
        found = take(other)
        return found is not None and bool((np.abs(found.astype(int) - rgb) < 12).all())

    await until(lambda: close_to(200, 100, 50), 30, "a picture")
    first = dict(other.source.info)
    ndi_stream.shown = picture(20, 200, 90, height=96, width=128)
    await until(lambda: close_to(20, 200, 90), 30, "a picture of another size")
    other.stop_sources()

    assert other.pictures_in["ndi"] > 1
    assert first == {"kind": "ndi", "name": "stage", "width": 64, "height": 48, "state": "running"}
    assert (ndi_stream.sinks[0].info["width"], ndi_stream.sinks[0].info["state"]) == (128, "running")


async def test_ndi_senders_have_names(ndi_stream: Idle) -> None:
    video = local_video(ndi_stream)

    async def found() -> bool:
        return any(name.endswith("(stage)") for name in await video.senders("ndi"))

    await until(found, 30, "the name")


async def test_an_ndi_source_that_is_not_there_is_told_with_those_that_are(
    ndi_stream: Idle, other: Idle
) -> None:
    video = local_video(ndi_stream, other)
    control = RecordedControl()
    other.add_control(control)

    await video.set_source(other, "ndi", True, "nowhere")
    await until(lambda: errors_told(control), 30, "the message")
    other.stop_sources()

    [error] = errors_told(control)
    assert error["msg"].startswith("No NDI source 'nowhere' was found.")
    assert error["loc"] == ["input_source", "ndi"]
    assert other.sources_lost == {"ndi": 1}


# What is available, and how it is asked for


@pytest.mark.parametrize(
    ("library", "platform", "reason", "hint"),
    [
        (spout, "linux", "Spout is only available on Windows", "on Windows"),
        (spout, "win32", "optional package SpoutGL", "wanstream[spout]"),
        (syphon, "linux", "Syphon is only available on macOS", "on macOS"),
        (syphon, "darwin", "optional package syphon", "wanstream[syphon]"),
    ],
)
def test_what_is_missing_is_said(library: ModuleType, platform: str, reason: str, hint: str) -> None:
    found = library.available(platform)

    assert not found.available
    assert reason in found.reason
    assert hint in found.install_hint


def test_what_is_there_is_available(doubles: None) -> None:
    assert [spout.available("win32").available, syphon.available("darwin").available] == [True, True]
    assert ndi.available().as_dict() == {"available": True, "reason": None, "install_hint": None}


@pytest.mark.parametrize(
    ("env", "allowed"),
    [
        ({}, True),
        ({"WANSTREAM_TOKEN": "t"}, False),
        ({"WANSTREAM_TOKEN": "t", "WANSTREAM_NDI": "on"}, True),
        ({"WANSTREAM_NDI": "off"}, False),
    ],
    ids=str,
)
async def test_ndi_beside_a_token_has_to_be_allowed(env: dict[str, str], allowed: bool, stream: Idle) -> None:
    video = LocalVideo([stream], ndi_allowed=Config.from_env(env).ndi_allowed)

    found = video.availability("ndi")

    assert found.available == allowed
    if not allowed:
        assert "WANSTREAM_NDI=on" in found.text
        with pytest.raises(ApiError, match="WANSTREAM_NDI=on"):
            await video.set_sink(stream, "ndi", True)


@pytest.mark.parametrize(
    ("values", "loc"),
    [
        ({"spout_sender": {"enabled": True, "name": "X"}}, "spout_sender"),
        ({"spout_receiver": {"enabled": True}}, "spout_receiver"),
        ({"output_sinks": {"spout": {"enabled": True}}}, "output_sinks"),
        ({"input_source": {"source_type": "spout"}}, "input_source"),
    ],
    ids=str,
)
async def test_spout_is_refused_politely_where_it_is_not(
    values: dict[str, Any], loc: str, stream: Idle
) -> None:
    stream.on_wish = local_video(stream).wish

    [problem] = await stream.update(values)
    switched_off = json.loads(json.dumps(values).replace("true", "false"))
    quiet = await stream.update(switched_off) if switched_off != values else []

    assert problem["loc"] == [loc]
    assert problem["type"] == "unavailable"
    assert "Spout is only available on Windows" in problem["msg"]
    assert quiet == []


async def test_scope_s_parameters_change_sinks_and_source(stream: Idle, spout_gl: ModuleType) -> None:
    video = local_video(stream, spout=on("win32", spout))
    stream.on_wish = video.wish
    receiver = {"enabled": True, "name": "desk"}

    async def after(**values: Any) -> tuple[list[str], str | None]:
        assert await stream.update(values) == []
        await video.close()
        source = stream.source
        return [sink.name for sink in stream.sinks], None if source is None else source.info["name"]

    assert await after(spout_sender={"enabled": True}) == (["ScopeOut"], None)
    assert await after(spout_sender={"enabled": True, "name": ""}) == ([""], None)
    assert await after(spout_receiver=receiver) == ([""], "desk")
    assert await after(spout_receiver={"enabled": False}) == ([""], None)
    source = {"source_type": "spout", "source_name": "a", "enabled": True}
    sinks = {"spout": {"enabled": True, "name": "b"}}
    assert await after(output_sinks=sinks, input_source=source) == (["b"], "a")
    sinks = {"spout": {"enabled": False}}
    assert await after(output_sinks=sinks, input_source={**source, "enabled": False}) == ([], None)
    assert "spout_sender" not in stream.state.effective
    assert "spout_sender" not in stream.state.take_chunk().parameters


async def test_a_kind_that_there_is_not_is_refused(stream: Idle) -> None:
    with pytest.raises(ApiError, match="only spout, ndi, syphon") as caught:
        await local_video(stream).set_sink(stream, "smoke", True)

    assert caught.value.status == 404


async def test_the_end_of_a_stream_releases_its_names(stream: Idle, spout_gl: ModuleType) -> None:
    video = local_video(stream, spout=on("win32", spout))
    await video.set_sink(stream, "spout", True)
    await shown(stream, picture(1, 2, 3), lambda: spout_gl.machine.textures, "a picture")

    await stream.close()

    assert spout_gl.machine.textures == {}
