"""The built-in page in real Chromium with a fake camera, against real servers."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Browser

from tests.server.browser import (
    PHONE,
    QUICKSTART,
    movement,
    names_of_controls,
    opened,
    out_of_reach,
    pixels,
    sessions_end,
    start,
    state,
)
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import sessions
from tests.server.processes import ServerProcess

MOVING = 0.01  # share of pixels that change clearly: the fake camera's are more, a frozen picture's fewer

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_camera_comes_back_moving_through_passthrough(browser: Browser, server: ServerProcess) -> None:
    async with opened(browser, server.url) as page:
        await start(page)

        moved = await movement(page)
        await page.wait_for_function("() => wanstream.stats?.fps > 5 && wanstream.stats.rttMs !== null")
        stats = await page.evaluate("wanstream.stats")

        assert moved > MOVING
        # Chromium sends a smaller picture where the machine is too busy to encode the camera's.
        assert (stats["width"], stats["height"]) in {
            (640 * share // 12, 480 * share // 12) for share in (12, 9, 6, 3)
        }
        assert list(await sessions(server.client)) == [await page.evaluate("wanstream.sessionId")]
    await sessions_end(server)


async def test_pause_freezes_the_picture_and_resume_moves_it(browser: Browser, server: ServerProcess) -> None:
    async with opened(browser, server.url) as page:
        await start(page)

        await page.keyboard.press("Space")
        await state(page, "paused")
        await page.wait_for_timeout(1000)  # pictures that were on their way
        frozen = await movement(page, over_ms=2000)
        await page.get_by_role("button", name="Resume").click()
        await state(page, "streaming")
        await page.wait_for_timeout(500)
        moved = await movement(page)

        assert frozen < MOVING / 4
        assert moved > MOVING


async def test_stop_frees_the_session_and_the_camera(browser: Browser, server: ServerProcess) -> None:
    async with opened(browser, server.url) as page:
        await start(page)
        track = await page.evaluate_handle("document.querySelector('#preview').srcObject.getTracks()[0]")

        await page.get_by_role("button", name="Stop").click()

        await state(page, "idle")
        await sessions_end(server, stopped=True)
        assert await track.evaluate("track => track.readyState") == "ended"


async def test_leaving_the_page_frees_the_session(browser: Browser, server: ServerProcess) -> None:
    async with opened(browser, server.url) as page:
        await start(page)

        await page.goto("about:blank")

        await sessions_end(server)


async def test_video_file_replaces_the_camera(
    browser: Browser, server: ServerProcess, tmp_path: Path
) -> None:
    async with opened(browser, server.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="Video file").check()
        await page.locator("#file").set_input_files(white_clip(tmp_path / "white.webm"))

        await page.get_by_role("button", name="Start").click()
        await state(page, "streaming")
        await page.wait_for_function("() => document.querySelector('#output').videoWidth === 320")

        assert (await pixels(page)).mean() > 200  # the fake camera is dark green


def white_clip(path: Path) -> Path:
    """One second of white, 320x240, VP8."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.time_base = Fraction(1, 25)
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), 255, np.uint8), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


async def test_snapshot_is_the_picture_as_png(browser: Browser, server: ServerProcess) -> None:
    async with opened(browser, server.url) as page:
        await start(page)

        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Save a snapshot").click()
        download = await waiting.value
        image = Image.open(await download.path())

        assert download.suggested_filename.startswith("wanstream-passthrough-")
        assert (image.format, image.size) == ("PNG", (640, 480))
        assert np.asarray(image.convert("L")).std() > 5  # not empty


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("double", "LongLive"),
        ("double", "StreamDiffusionV2"),
        ("double", "Krea Realtime Video"),
        ("server", "Passthrough"),
    ],
)
async def test_phone_window_shows_every_control(
    name: str, pipeline: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    target: ServerProcess = request.getfixturevalue(name)
    async with opened(browser, target.url, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name=pipeline, exact=True).check()
        idle = await page.evaluate("document.documentElement.scrollWidth")
        idle_unreachable = await out_of_reach(page)

        await page.get_by_role("button", name="Start").click()
        await state(page, "streaming")
        await page.wait_for_function("() => wanstream.stats !== null")

        assert idle == await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert idle_unreachable == []
        assert await out_of_reach(page) == []


@pytest.mark.parametrize(
    ("pipeline", "input_choice"),
    [
        ("LongLive", "Text only"),
        ("StreamDiffusionV2", "Video file"),
        ("Krea Realtime Video", "Text only"),
        ("Passthrough", "Video file"),
    ],
)
async def test_every_control_has_a_name(
    pipeline: str, input_choice: str, browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name=pipeline, exact=True).check()
        await page.get_by_role("radio", name=input_choice).check()

        controls = await names_of_controls(page)

        assert [role for role, name in controls if not name.strip()] == []
        assert {"button", "radio"} <= {role for role, _ in controls}


async def test_text_has_enough_contrast(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")

        contrasts = await page.evaluate(CONTRASTS)

        assert len(contrasts) > 30
        assert [pair for pair in contrasts if pair["ratio"] < 4.5] == []


# Every visible text outside disabled controls, against the nearest opaque background (WCAG 2.2, 1.4.3).
CONTRASTS = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => {
        const [r, g, b] = numbers(colour).slice(0, 3).map((level) => level / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return (numbers(colour)[3] ?? 1) === 1 ? colour : background(element.parentElement);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const text = walker.currentNode.data.trim();
        if (!text || !element.checkVisibility() || element.closest("script, :disabled, .sr-only")) continue;
        const [one, other] = [luminance(getComputedStyle(element).color), luminance(background(element))];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        found.push({ text, ratio });
    }
    return found;
}"""


async def test_delay_is_read_from_the_pictures(browser: Browser, server: ServerProcess) -> None:
    async with opened(browser, server.url) as page:
        estimate, still = await page.evaluate(
            """async () => {
                const { DelayEstimator } = await import("/static/delay.js");
                // A light that wanders without repeating itself, seen again 350 ms later, darker and noisy.
                const wave = (i, time) => Math.sin(i / 9 + time / 311 + 2 * Math.sin(time / 977));
                const picture = (time, gain, noise) => Float32Array.from({ length: 192 }, (_, i) =>
                    128 + gain * wave(i, time) + noise * Math.sin(i * 97 + time));
                const [moving, still] = [new DelayEstimator(), new DelayEstimator()];
                for (let time = 0; time < 6000; time += 33) {
                    moving.addInput(time, picture(time, 60, 0));
                    moving.addOutput(time + 7, picture(time + 7 - 350, 30, 5));
                    still.addInput(time, picture(0, 60, 0));
                    still.addOutput(time, picture(0, 60, 0));
                }
                return [moving.estimate(), still.estimate()];
            }"""
        )

        assert estimate == pytest.approx(350, abs=20)
        assert still is None


@pytest.mark.parametrize(
    ("name", "pipeline", "source"), [("server", "passthrough", "video"), ("double", "longlive", "text")]
)
async def test_page_from_disk_streams_and_steers(
    name: str, pipeline: str, source: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    target: ServerProcess = request.getfixturevalue(name)
    async with opened(
        browser, f"{QUICKSTART}?server={target.url}&pipeline={pipeline}&input={source}"
    ) as page:
        await page.wait_for_function(
            "() => result.error || (result.frames > 10 && result.single && channel.readyState === 'open')"
        )
        assert await page.evaluate("result.error") is None

        await page.evaluate("""channel.send('{"paused": true}')""")
        await page.evaluate("""channel.send('{"height": 64}')""")
        await page.wait_for_function("() => result.messages.length")
        result = await page.evaluate("result")
        metrics = await sessions(target.client)
        await page.evaluate("peer.close()")

        assert result["origin"] == "null"
        assert result["batched"] == 1
        assert result["messages"][0]["type"] == "parameter_error"
        assert metrics[result["sessionId"]]["paused"] is True
        await sessions_end(target)


async def test_the_chosen_segment_is_seen_in_forced_colours(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url, forced_colors="active") as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()

        chosen, other = [
            await page.locator(f"#modes input{checked} + span").evaluate(
                "span => getComputedStyle(span).backgroundColor"
            )
            for checked in (":checked", ":not(:checked)")
        ]

        marked = await page.evaluate(
            """() => {
                document.body.style.color = "Highlight";
                return getComputedStyle(document.body).color;
            }"""
        )
        assert chosen == marked != other
