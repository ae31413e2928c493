"""The trained demonstration from a prompt to what a viewer sees: pictures are judged by what is in them.

A new server exports it by itself; prompts, their changes and the camera come from aiortc peers and Chromium.
"""

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from playwright.async_api import Page

from export.nano.measure import Images, Seen, look, object_mask, place, rim_part, tile_contrast, velocity
from export.nano.text import CAMERA
from export.nano.world import PALETTE, SHAPES, Scene, draw, palette_of
from tests.server.browser import chromium, drop, field, opened, pixels, start
from tests.server.camera import PlainCamera, StillCamera
from tests.server.gateway_calls import load, pipeline_status, wait_status
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server as a newcomer starts it, with nothing in its home directory."""
    process = ServerProcess("gateway", tmp_path_factory.mktemp("nano"), {"WANSTREAM_DEMO": "on"}, ["-N"])
    yield process
    process.stop(within_s=60)


@pytest.fixture
async def server(nano: ServerProcess) -> ServerProcess:
    """The server, with the demonstration loaded."""
    await wait_status(nano.client, "loaded", 400)
    await load(nano.client, "longlive", within_s=120)
    return nano


def on(background: str) -> str:
    return f"a red circle stays still on a {background} background"


def newest(peer: Peer, count: int = 1) -> Images:
    """The last pictures that arrived, [count, H, W, 3]."""
    return np.stack(peer.pictures[-count:])


def background(picture: npt.NDArray[np.uint8]) -> float:
    """Brightness of what more than half of a picture shows, 0 to 255."""
    return float(np.median(picture.reshape(-1, 3), axis=0).mean())


async def until_seen(peer: Peer, wanted: str, within_s: float = 60) -> None:
    """Wait for a picture with this background."""
    await until(
        lambda: bool(peer.pictures) and look(peer.pictures[-1]).background == wanted,
        within_s,
        f"a {wanted} background",
    )


async def test_the_picture_shows_what_the_prompt_says_and_follows_a_new_one(server: ServerProcess) -> None:
    async with Peer(server.client, keep_pictures=True) as peer:
        await peer.connect({"prompts": "a large red circle stays still on a yellow background"})
        await peer.wait_frames(20, within_s=60)
        before = {names(look(picture)) for picture in newest(peer, 8)}

        peer.send({"prompts": "a large white square stays still on a blue background"})
        await until_seen(peer, "blue")
        await peer.wait_frames(24, within_s=60)
        after = {names(look(picture)) for picture in newest(peer, 8)}

    assert before == {("yellow", "red")}
    assert after == {("blue", "white")}


def names(seen: Seen) -> tuple[str, str]:
    return seen.background, seen.object


@pytest.mark.parametrize("motion", ["moves left", "moves down", "stays still"])
async def test_a_shape_moves_as_the_prompt_says(server: ServerProcess, motion: str) -> None:
    scene = Scene("", "yellow", "square", motion, "black")
    async with Peer(server.client, keep_pictures=True) as peer:
        await peer.connect({"prompts": scene.prompt})
        await peer.wait_frames(9 + 24, within_s=60)
        found = velocity(newest(peer, 12), scene)

    assert found == pytest.approx(scene.velocity, abs=0.6)  # pixels per picture; a late one may be left out


async def test_two_prompts_at_once_give_the_colour_in_between(server: ServerProcess) -> None:
    prompts = [{"text": on(colour), "weight": 1.0} for colour in ("white", "black")]
    async with Peer(server.client, keep_pictures=True) as peer:
        await peer.connect({"prompts": prompts})
        await peer.wait_frames(20, within_s=60)

        assert 80 < background(peer.pictures[-1]) < 180  # white is 240, black 20


async def test_a_transition_over_eight_chunks_passes_through_the_middle(server: ServerProcess) -> None:
    async with Peer(server.client, keep_pictures=True) as peer:
        await peer.connect({"prompts": on("black")})
        await peer.wait_frames(20, within_s=60)
        begun = len(peer.pictures)

        target = [{"text": on("white"), "weight": 1.0}]
        peer.send({"transition": {"target_prompts": target, "num_steps": 8}})
        await until_seen(peer, "white", 90)
        levels = [background(picture) for picture in peer.pictures[begun:]]

    assert levels[0] < 40
    assert sum(70 < level < 200 for level in levels) >= 12  # a whole chunk at least is neither of the two


async def test_a_reset_cuts_to_the_picture_that_the_stream_began_with(server: ServerProcess) -> None:
    scene = Scene("", "white", "circle", "moves right", "green")
    async with Peer(server.client, keep_pictures=True) as peer:
        await peer.connect({"prompts": scene.prompt, "base_seed": 3})
        await peer.wait_frames(40, within_s=60)
        first, far = (place(object_mask(peer.pictures[i], scene)) for i in (4, -1))
        peer.send({"reset_cache": True})

        def back() -> bool:
            here = place(object_mask(peer.pictures[-1], scene))
            return first is not None and here is not None and bool(np.hypot(*np.subtract(here, first)) < 2)

        assert first is not None
        assert far is not None
        assert abs(far[0] - first[0]) > 10
        await until(back, 60, "the shape where it began")


async def test_pause_holds_the_picture(server: ServerProcess) -> None:
    async with Peer(server.client, keep_pictures=True) as peer:
        await peer.connect({"prompts": "a large white circle moves right on a green background"})
        await peer.wait_frames(20, within_s=60)

        peer.send({"paused": True})
        await peer.wait_frames(40, within_s=60)  # what was made before is shown first
        held = newest(peer, 10).astype(int)

    assert np.abs(held - held[0]).mean(axis=(1, 2, 3)).max() < 2


@pytest.mark.parametrize("colour", ["green", "purple"])
async def test_in_camera_mode_the_picture_has_the_colour_of_the_input(
    server: ServerProcess, colour: str
) -> None:
    parameters = {"prompts": "what the camera shows", "input_mode": "video"}
    async with Peer(server.client, source=PlainCamera(PALETTE[colour]), keep_pictures=True) as peer:
        await peer.connect(parameters)

        await until_seen(peer, colour)
        await peer.wait_frames(24, within_s=60)
        seen = [look(picture).background for picture in newest(peer, 8)]

    assert seen == [colour] * 8


async def test_in_camera_mode_a_prompt_paints_the_input_anew(server: ServerProcess) -> None:
    parameters = {
        "prompts": on("yellow"),
        "input_mode": "video",
        "noise_scale": 1.0,
        "noise_controller": False,
    }
    async with Peer(server.client, source=PlainCamera(PALETTE["blue"]), keep_pictures=True) as peer:
        await peer.connect(parameters)

        await until_seen(peer, "yellow")


async def test_in_the_browser_a_prompt_and_an_example_become_the_picture(server: ServerProcess) -> None:
    async with chromium() as browser, opened(browser, server.url) as page:
        await field(page, "Prompt 1").fill("a large red star stays still on a white background")
        await start(page, "LongLive", within_s=60)

        def shows(colours: tuple[str, str]) -> Callable[[], Awaitable[bool]]:
            async def shown() -> bool:
                return names(look((await pixels(page)).astype(np.uint8))) == colours

            return shown

        await until(shows(("white", "red")), 60, "a red shape on white")
        example = "a yellow star pulses on a black background"
        await page.locator("#examples-list button", has_text=example).click()
        await until(shows(("black", "yellow")), 60, "a yellow shape on black")
        note = await page.locator("#examples-note").inner_text()

    assert "tiny demonstration model" in note


def painted(scene: Scene, at: tuple[float, float] = (48.0, 48.0)) -> bytes:
    """The scene as a picture of the world, PNG."""
    colours = [palette_of([scene], part) for part in ("colour", "background")]
    shape, centre, radius = SHAPES.index(scene.shape), [list(at)], [22.0]
    drawn = draw(torch.tensor([shape]), torch.tensor(centre), torch.tensor(radius), *colours, (96, 96))[0]
    levels = ((drawn.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    stored = io.BytesIO()
    Image.fromarray(levels).save(stored, "PNG")
    return stored.getvalue()


async def test_in_the_browser_a_dropped_picture_gives_the_stream_its_colours(server: ServerProcess) -> None:
    scene = Scene("", "purple", "square", "stays still", "yellow")
    async with chromium() as browser, opened(browser, server.url) as page:
        await field(page, "Prompt 1").fill(CAMERA[0])  # leaves everything open
        await start(page, "LongLive", within_s=60)

        await drop(page, "#output", "purple square.png", painted(scene))

        async def shows() -> bool:
            return names(look((await pixels(page)).astype(np.uint8))) == ("yellow", "purple")

        await until(shows, 400, "a purple shape on yellow")  # the engines of the branch are exported now
        assert await field(page, "Load VACE").is_checked()
    assert (await pipeline_status(server.client))["load_params"]["vace_enabled"] is True


async def test_in_camera_mode_the_shape_is_where_the_control_video_has_it(server: ServerProcess) -> None:
    await load(server.client, "longlive", {"vace_enabled": True}, within_s=400)
    control = Scene("", "white", "circle", "stays still", "black")
    wanted = Scene("", "red", "circle", "stays still", "blue")
    for place_ in ((26.0, 30.0), (70.0, 66.0)):
        source = StillCamera(np.asarray(Image.open(io.BytesIO(painted(control, place_)))))
        async with Peer(server.client, source=source, keep_pictures=True) as peer:
            await peer.connect({"prompts": wanted.prompt, "input_mode": "video"})

            def there(place_: tuple[float, float] = place_) -> bool:
                found = place(object_mask(peer.pictures[-1], wanted)) if peer.pictures else None
                return found is not None and bool(np.hypot(*np.subtract(found, place_)) < 8)

            await until(there, 60, f"the shape at {place_}")


BESIDE = {"lora_merge_mode": "runtime_peft"}
RIMS, TILES = "outlined-shapes.safetensors", "checkered-background.safetensors"
SCENE = "a large red square stays still on a blue background"


@pytest.fixture
async def adapted(server: ServerProcess) -> AsyncIterator[ServerProcess]:
    """The server with the demonstration's engines that take LoRA files, and none of these yet."""
    await load(server.client, "longlive", BESIDE, within_s=400)  # they are exported now
    yield server
    for adapter in (await pipeline_status(server.client))["loaded_lora_adapters"]:
        await server.client.call("DELETE", f"{LIVE_LORAS}?path={adapter['path']}")


LIVE_LORAS = "/api/v1/pipeline/loras"


async def until_measured(peer: Peer, measure: Callable[[Images], float], least: float, most: float) -> None:
    """Wait for a picture of which `measure` is within these bounds."""
    await until(
        lambda: bool(peer.pictures) and least <= measure(peer.pictures[-1]) <= most,
        120,
        f"{measure.__name__} from {least} to {most}",
    )


async def test_files_come_and_go_beside_the_weights_while_streams_go_on(adapted: ServerProcess) -> None:
    """Two viewers: one turns a file up and down, the other has it as it was loaded."""
    async with (
        Peer(adapted.client, keep_pictures=True) as one,
        Peer(adapted.client, keep_pictures=True) as other,
    ):
        for peer in (one, other):
            await peer.connect({"prompts": SCENE, "manage_cache": False})
            await until_measured(peer, rim_part, 0, 0.004)
            await until_measured(peer, tile_contrast, 0, 0.005)

        added = await adapted.client.call("POST", LIVE_LORAS, json_body={"path": TILES})
        for peer in (one, other):
            await until_measured(peer, tile_contrast, 0.02, 1)
        one.send({"lora_scales": [{"path": TILES, "scale": 0.0}]})
        await until_measured(one, tile_contrast, 0, 0.005)
        await until_measured(other, tile_contrast, 0.02, 1)
        both = await adapted.client.call("POST", LIVE_LORAS, json_body={"path": RIMS, "scale": 1.0})
        await until_measured(other, rim_part, 0.02, 1)
        gone = await adapted.client.call("DELETE", f"{LIVE_LORAS}?path={TILES}")
        await until_measured(other, tile_contrast, 0, 0.005)
        await until_measured(other, rim_part, 0.02, 1)
        messages = [
            m for peer in (one, other) for m in peer.messages if m["type"] in ("stream_stopped", "error")
        ]

    assert [answer.status for answer in (added, both, gone)] == [200] * 3
    names = [[a["path"] for a in answer.json()["loaded_lora_adapters"]] for answer in (added, both, gone)]
    assert names == [[TILES], [TILES, RIMS], [RIMS]]
    assert messages == []


async def test_what_cannot_be_put_beside_the_weights_is_refused_with_its_reason(
    adapted: ServerProcess,
) -> None:
    (adapted.home / "models" / "lora" / "torn.safetensors").write_bytes(b"no tensors")
    await adapted.client.call("POST", LIVE_LORAS, json_body={"path": RIMS})
    cases: list[tuple[str, str, dict[str, Any] | None, int, str]] = [
        ("POST", "", {"path": "absent.safetensors"}, 400, "file_not_found"),
        ("POST", "", {"path": "../secret.safetensors"}, 400, "path_not_allowed"),
        ("POST", "", {"path": "torn.safetensors"}, 400, "unreadable"),
        ("POST", "", {"path": RIMS}, 400, "duplicate"),
        ("POST", "", {"path": TILES, "scale": 11}, 422, "less than or equal to 10"),
        ("DELETE", "?path=never.safetensors", None, 404, "is not loaded"),
        ("DELETE", "", None, 422, "Field required"),
    ]

    answers = [
        await adapted.client.call(method, LIVE_LORAS + query, json_body=body)
        for method, query, body, *_ in cases
    ]

    for answer, (*_, status, text) in zip(answers, cases, strict=True):
        assert (answer.status, text in answer.text) == (status, True), answer.text
    loaded = (await pipeline_status(adapted.client))["loaded_lora_adapters"]
    assert [adapter["path"] for adapter in loaded] == [RIMS]


async def test_what_was_loaded_without_takes_no_files(server: ServerProcess) -> None:
    answer = await server.client.call("POST", LIVE_LORAS, json_body={"path": RIMS})

    assert answer.status == 400
    assert "load the pipeline with lora_merge_mode runtime_peft" in answer.text


async def test_in_the_browser_a_slider_turns_a_file_while_the_stream_goes_on(adapted: ServerProcess) -> None:
    async with chromium() as browser, opened(browser, adapted.url) as page:
        await field(page, "Prompt 1").fill(SCENE)
        await page.get_by_label("Manage cache").uncheck()
        await start(page, "LongLive", within_s=60)
        plain = await steady(page)
        row = page.locator("[data-lora=checkered-background]")
        await row.get_by_role("checkbox").check()
        await until(lambda: differs(page, plain, least=20), 120, "another background")
        await field(page, "Strength of Checkered background").fill("0")
        await until(lambda: differs(page, plain, most=12), 120, "the plain background again")
        session = await page.evaluate("window.wanstream.sessionId")
        names = await page.locator(".lora-name").all_inner_texts()

    assert session is not None
    assert {"Checkered background", "Outlined shapes"} <= set(names)


async def steady(page: Page) -> Images:
    """A picture that shows the prompt's scene."""

    async def shows() -> bool:
        return names(look((await pixels(page)).astype(np.uint8))) == ("blue", "red")

    await until(shows, 60, "a red shape on blue")
    return await pixels(page)


async def differs(page: Page, before: Images, least: float = 0, most: float = 255) -> bool:
    """Whether the picture differs from one of before by so much, on average over its pixels."""
    return least <= float(np.abs((await pixels(page)) - before).mean()) <= most
