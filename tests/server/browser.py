"""Real Chromium for tests of the page: starting it, waiting for the page's states, comparing pictures."""

import io
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from tests.server.gateway_calls import sessions
from tests.server.peer import until
from tests.server.processes import ServerProcess

FAKE_CAMERA = "--use-fake-device-for-media-stream"
ALLOW_CAMERA = "--use-fake-ui-for-media-stream"
DENY_CAMERA = "--use-fake-ui-for-media-stream=deny"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
RECORDER = Path(__file__).parent / "pages" / "recorder.js"
QUICKSTART = (Path(__file__).parent / "pages" / "quickstart.html").as_uri()

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_INSTALL = "Chromium is missing. Install it: apt-get update && apt-get install -y chromium"

Pixels = npt.NDArray[np.int16]

expect.set_options(timeout=60_000)  # ms; how quickly a page shows something depends on the machine


@asynccontextmanager
async def chromium(*arguments: str, wrapper: Path | None = None) -> AsyncIterator[Browser]:
    """A browser with further command-line arguments; $CHROMIUM overrides where it is looked for.

    wrapper: a program that starts it in some other way, from its own arguments.
    """
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, _INSTALL
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=wrapper or path, args=[*_ARGUMENTS, *arguments]
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened(browser: Browser, url: str, *, record: bool = False, **context: Any) -> AsyncIterator[Page]:
    """A page in a profile of its own. Fails at the end when the page's scripts had an uncaught error.

    record: keep every decoded picture, for tests.server.recording
    """
    profile = await browser.new_context(**{"viewport": DESKTOP, **context})
    if record:
        await profile.add_init_script(path=RECORDER)
    page = await profile.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        await page.goto(url)
        yield page
    finally:
        await profile.close()
    assert errors == []


async def mean_colour(page: Page, x: float, y: float, width: float, height: float) -> npt.NDArray[np.float64]:
    """RGB of what the window shows in a rectangle, in pixels from its upper left corner; 0 to 255."""
    clip = {"x": x, "y": y, "width": width, "height": height}
    picture = Image.open(io.BytesIO(await page.screenshot(clip=clip)))  # type: ignore[arg-type]
    return np.asarray(picture.convert("RGB"), np.float64).mean(axis=(0, 1))


async def state(page: Page, *wanted: str, within_s: float = 60.0) -> str:
    """Wait until the page is in one of the states and return it; the error shows what the page says."""
    try:
        await page.wait_for_function(
            "wanted => wanted.includes(window.wanstream?.state)", arg=wanted, timeout=within_s * 1000
        )
    except Exception as error:
        shown = await page.locator("body").inner_text()
        raise AssertionError(f"not {wanted} within {within_s} s; the page says:\n{shown}") from error
    return str(await page.evaluate("window.wanstream.state"))


async def start(page: Page, pipeline: str = "Passthrough", within_s: float = 60.0) -> None:
    """Choose a pipeline, press Start, wait for the picture."""
    await state(page, "idle")
    await page.get_by_role("radio", name=pipeline, exact=True).check()
    await page.get_by_role("button", name="Start").click()
    await state(page, "streaming", within_s=within_s)


def field(page: Page, label: str) -> Locator:
    """A control of the settings panel by its whole label."""
    return page.get_by_label(label, exact=True)


async def drop(page: Page, onto: str, name: str, content: bytes, kind: str = "image/png") -> None:
    """What a browser tells a page when a file is dropped."""
    await page.evaluate(
        """([onto, name, bytes, type]) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
            for (const event of ["dragover", "drop"]) {
                const dragged = new DragEvent(event, { dataTransfer, bubbles: true, cancelable: true });
                document.querySelector(onto).dispatchEvent(dragged);
            }
        }""",
        [onto, name, list(content), kind],
    )


def notice(page: Page, title: str) -> Locator:
    """A message above the picture, by its title."""
    return page.locator(".notice", has_text=title)


async def pixels(page: Page, video: str = "#output") -> Pixels:
    """The picture that a video element shows, int16 [120, 160, 3] RGB."""
    rgba = await page.evaluate(
        """selector => {
            const canvas = new OffscreenCanvas(160, 120);
            const context = canvas.getContext("2d", { willReadFrequently: true });
            context.drawImage(document.querySelector(selector), 0, 0, 160, 120);
            return [...context.getImageData(0, 0, 160, 120).data];
        }""",
        video,
    )
    return np.asarray(rgba, np.int16).reshape(120, 160, 4)[..., :3]


async def movement(page: Page, over_ms: float = 700) -> float:
    """Share of the output's pixels that change clearly (by more than 40 levels) in that time."""
    before = await pixels(page)
    await page.wait_for_timeout(over_ms)
    after = await pixels(page)
    return float((np.abs(after - before).max(axis=-1) > 40).mean())


async def names_of_controls(page: Page) -> list[tuple[str, str]]:
    """(role, accessible name) of every control that assistive technology can reach."""
    devtools = await page.context.new_cdp_session(page)
    tree = await devtools.send("Accessibility.getFullAXTree")
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if not node["ignored"] and node["role"]["value"] in _CONTROLS
    ]


_CONTROLS = frozenset(
    (
        "button",
        "checkbox",
        "combobox",
        "DisclosureTriangle",
        "link",
        "progressbar",
        "radio",
        "slider",
        "spinbutton",
        "textbox",
    )
)


async def out_of_reach(page: Page) -> Sequence[str]:
    """Visible controls that lie outside the window's width, or are covered after scrolling to them."""
    return list(
        await page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea, a, summary")]
                .filter(element => element.checkVisibility())
                .filter(element => {
                    element.focus();  // scrolls to it, past bars that stay in place
                    const box = element.getBoundingClientRect();
                    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                    const top = document.elementFromPoint(x, y);
                    const hit = top && (element.contains(top) || top.contains(element)
                        || top.closest("label")?.contains(element));
                    return box.left < 0 || box.right > innerWidth || (!element.disabled && !hit);
                })
                .map(element => element.outerHTML.slice(0, 120))"""
        )
    )


async def sessions_end(server: ServerProcess, within_s: float = 30.0, *, stopped: bool = False) -> None:
    """Wait until the server has no session.

    stopped: the page has ended its stream. Otherwise that waits for the page to come back, and is ended here.
    """

    async def none_left() -> bool:
        if not stopped:
            await end_what_waits(server)
        return not await sessions(server.client)

    await until(none_left, within_s, "no session on the server")


async def end_what_waits(server: ServerProcess) -> None:
    """End streams that nobody is connected to."""
    for stream in (await server.client.call("GET", "/api/v1/streams")).json()["streams"]:
        if not stream["people"]:
            await server.client.call("DELETE", f"/api/v1/streams/{stream['id']}")
