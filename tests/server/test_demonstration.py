"""The trained demonstration from a prompt to what a viewer sees: pictures are judged by what is in them.

A new server exports it by itself; prompts, their changes and the camera come from aiortc peers and Chromium.
"""

from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from export.nano.measure import Images, Seen, look, object_mask, place, velocity
from export.nano.world import PALETTE, Scene
from tests.server.browser import chromium, field, opened, pixels, start
from tests.server.camera import PlainCamera
from tests.server.gateway_calls import load, wait_status
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
