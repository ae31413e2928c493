"""The stage of the built-in page in real Chromium: looks, keys, cue lists, the clean feed."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from tests.server.browser import (
    PHONE,
    field,
    mean_colour,
    opened,
    out_of_reach,
    pixels,
    sessions_end,
    start,
    state,
)
from tests.server.double import COLOURS
from tests.server.double_process import DoubleProcess
from tests.server.peer import until

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


def book(*names: str, **more: Any) -> dict[str, Any]:
    looks = [{"name": name, "title": name.title(), "set": {"prompts": name}} for name in names]
    return {"version": 1, "looks": looks, **more}


@pytest_asyncio.fixture(loop_scope="module")
async def show(double: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """A healthy server with five looks, of a colour each."""
    await put(double, "/api/v1/looks", book(*COLOURS))
    yield double
    await put(double, "/api/v1/looks", {"version": 1})
    for name in (await double.client.call("GET", "/api/v1/cues")).json()["cues"]:
        await double.client.call("DELETE", f"/api/v1/cues/{name}")
    await double.client.call("POST", "/api/v1/tempo/disable")


async def put(server: DoubleProcess, path: str, body: Any) -> None:
    answer = await server.client.call("PUT", path, json_body=body)
    assert answer.status == 200, answer.text


async def colour(page: Page, wanted: str, within_s: float = 30.0, video: str = "#output") -> None:
    """Wait until the middle of the picture has that colour."""

    async def is_there() -> bool:
        middle = (await pixels(page, video))[70:110, 40:120].reshape(-1, 3).mean(axis=0)
        return bool(np.abs(middle - COLOURS[wanted]).max() < 40)

    await until(is_there, within_s, f"a {wanted} picture")


@dataclass
class MinuteShow:
    """A cue list across 60 s on a server and a page of its own, which runs beside the other tests."""

    server: DoubleProcess
    task: "asyncio.Task[dict[str, Any]]"


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def minute(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MinuteShow]:
    home = tmp_path_factory.mktemp("minute")
    server = await asyncio.to_thread(DoubleProcess, home, {"WANSTREAM_MAX_SESSIONS": "2"})
    await put(server, "/api/v1/looks", book(*COLOURS))
    lines = [{"at": 15 * number, "look": name} for number, name in enumerate(COLOURS)]
    await put(server, "/api/v1/cues/evening", {"clock": "time", "lines": lines})
    task = asyncio.create_task(play_a_minute(browser, server))
    yield MinuteShow(server, task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(server.stop)


async def play_a_minute(browser: Browser, server: DoubleProcess) -> dict[str, Any]:
    """Play the list, load the page again in its middle; what was seen."""
    names = list(COLOURS)
    lines: list[int] = []

    async def reached(number: int) -> bool:
        status = (await server.client.call("GET", f"/api/v1/streams/{before}/cues")).json()
        if status.get("line") is not None and status["line"] not in lines:
            lines.append(status["line"])
        return bool(lines and lines[-1] >= number)

    async with opened(browser, server.url) as page:
        await start(page, "LongLive")
        before = await page.evaluate("wanstream.streamId")
        began = time.monotonic()
        await page.keyboard.press("c")
        await colour(page, names[0])
        await until(lambda: reached(2), 120, "the middle of the show")
        await colour(page, names[2])
        await page.reload()
        await state(page, "streaming")
        after = await page.evaluate("wanstream.streamId")
        await expect(page.locator("#cues-state")).to_contain_text("evening plays")
        await colour(page, names[-1], within_s=120)  # the last one stays
        took_s = time.monotonic() - began
        await expect(page.locator("#cues-state")).to_have_text("")
        said = [chunk["active_prompts"][0]["text"] for chunk in server.chunks()]
        order = [text for text, _ in itertools.groupby(said)]
        return {"ids": [before, after], "shown": order[-len(names) :], "took_s": took_s}


async def test_a_show_of_five_looks_is_recalled_by_keys(
    browser: Browser, show: DoubleProcess, tmp_path: Path
) -> None:
    async with opened(browser, show.url) as page:
        await start(page, "LongLive")
        for key, name in (("2", "green"), ("3", "blue"), ("1", "red"), ("5", "white"), ("4", "grey")):
            await page.keyboard.press(key)
            await colour(page, name)
            await expect(page.get_by_role("button", name=name.title(), exact=True)).to_have_attribute(
                "aria-pressed", "true"
            )
        await expect(field(page, "Prompt 1")).to_have_value("grey")


async def test_a_look_is_saved_named_moved_exported_and_a_bad_file_refused_with_its_line(
    browser: Browser, show: DoubleProcess, tmp_path: Path
) -> None:
    async with opened(browser, show.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        await field(page, "Prompt 1").fill("blue hour")
        await page.keyboard.press("Tab")
        await page.get_by_label("Reached in").fill("2")
        await page.get_by_role("button", name="Save look").click()
        await expect(page.get_by_role("button", name="blue hour")).to_be_visible()
        await page.get_by_role("button", name="Edit", exact=True).click()
        await page.get_by_label("Name of blue hour").fill("Blue hour!")
        await page.get_by_label("Name of blue hour").press("Enter")
        await page.get_by_role("button", name="Move up Blue hour!").click()
        await expect(page.locator(".looks li").nth(4)).to_have_attribute("data-look", "blue-hour")
        await page.get_by_role("button", name="Delete White").click()
        await expect(page.get_by_role("button", name="White", exact=True)).to_have_count(0)
        async with page.expect_download() as exporting:
            await page.get_by_role("button", name="Export").first.click()
        await (await exporting.value).save_as(tmp_path / "looks.json")
        exported = json.loads((tmp_path / "looks.json").read_text())
        bad = (tmp_path / "looks.json").read_text().replace('"set"', '"sets"', 1)
        (tmp_path / "bad.json").write_text(bad)
        async with page.expect_file_chooser() as choosing:
            await page.get_by_role("button", name="Import").first.click()
        await (await choosing.value).set_files(tmp_path / "bad.json")
        await expect(page.locator("#looks [role=alert]")).to_contain_text("Line ")
        unreachable = await out_of_reach(page)
        await page.set_viewport_size(PHONE)
        out_on_phone = await out_of_reach(page)

    names = [look["name"] for look in exported["looks"]]
    saved = exported["looks"][4]
    assert names == ["red", "green", "blue", "grey", "blue-hour"]
    assert (saved["title"], saved["transition_s"]) == ("Blue hour!", 2)
    assert saved["set"]["prompts"] == [{"text": "blue hour", "weight": 100}]
    assert saved["set"]["denoising_step_list"] == [1000, 750, 500, 250]
    assert (unreachable, out_on_phone) == ([], [])


async def test_a_cue_list_goes_on_while_its_page_is_loaded_again(
    browser: Browser, show: DoubleProcess
) -> None:
    lines = [{"at": 0, "look": "red"}, {"at": 1.5, "look": "green"}, {"at": 3, "look": "blue"}]
    await put(show, "/api/v1/cues/evening", {"clock": "time", "loop": True, "length": 4.5, "lines": lines})
    async with opened(browser, show.url) as page:
        await start(page, "LongLive")
        before = await page.evaluate("wanstream.streamId")
        await page.locator("#cues summary").click()
        await page.keyboard.press("c")
        await expect(page.locator("#cues-state")).to_contain_text("evening plays")
        for name in ("green", "blue", "red"):
            await colour(page, name)

        await page.reload()
        await state(page, "streaming", within_s=60)
        after = await page.evaluate("wanstream.streamId")
        for name in ("red", "green", "blue"):
            await colour(page, name)
        await expect(page.locator("#cues-state")).to_contain_text("evening plays")
        await page.locator("#cues summary").click()
        await page.get_by_role("button", name="Go to line 3").click()
        await colour(page, "blue")
        await page.locator("#cue-play").click()
        await expect(page.locator("#cues-state")).to_have_text("")
        await page.keyboard.press("4")  # the page drives its stream as before
        await colour(page, "grey")

        assert after == before
        await page.get_by_role("button", name="Stop", exact=True).first.click()
    await sessions_end(show, stopped=True)


async def test_a_page_that_is_loaded_again_finds_its_stream_as_it_was(
    browser: Browser, show: DoubleProcess
) -> None:
    def has_video() -> bool:
        chunks = show.chunks()
        return bool(chunks and chunks[-1]["video_frames"])

    async with opened(browser, show.url) as page:
        await start(page, "LongLive")
        before = await page.evaluate("wanstream.streamId")
        await page.keyboard.press("2")
        await colour(page, "green")
        opened_before = len(show.sessions())

        await page.reload()
        await state(page, "streaming")
        after = await page.evaluate("wanstream.streamId")
        opened_after = len(show.sessions())
        await colour(page, "green")
        await expect(field(page, "Prompt 1")).to_have_value("green")
        await expect(page.locator("#driven")).to_be_hidden()
        await expect(page.locator("#trust")).to_contain_text("Others nobody")
        await field(page, "Prompt 1").fill("blue")  # over the data channel: it drives
        await field(page, "Prompt 1").press("Enter")
        await colour(page, "blue")
        await page.get_by_role("radio", name="Video", exact=True).check()
        await page.get_by_role("button", name="Reload", exact=True).click()  # in the size of that mode
        await until(has_video, 60, "the camera arrives")

        await page.reload()  # with the camera
        await state(page, "streaming")
        await until(has_video, 60, "the camera arrives again")
        await page.keyboard.press("Space")
        await state(page, "paused")
        await page.reload()
        await state(page, "paused")
        await page.keyboard.press("Space")
        await state(page, "streaming")

        await page.goto("about:blank")
        await show.client.call("DELETE", f"/api/v1/streams/{before}")
        await page.goto(show.url)  # it has ended meanwhile: the settings are there, and one click begins
        await state(page, "idle")
        await expect(field(page, "Prompt 1")).to_have_value("blue")
        await start(page, "LongLive")
        await page.get_by_role("button", name="Stop", exact=True).first.click()
        await sessions_end(show, stopped=True)
        await page.reload()
        await state(page, "idle")
        await expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()

    assert after == before
    assert opened_after == opened_before, "the same caches"
    assert (await show.client.call("GET", "/api/v1/streams")).json()["streams"] == []


async def test_a_cue_list_is_made_on_the_page(browser: Browser, show: DoubleProcess) -> None:
    async with opened(browser, show.url) as page:
        await state(page, "idle")
        await page.locator("#cues summary").click()
        await page.get_by_role("button", name="New list").click()
        await expect(page.locator(".cue-lines li")).to_have_count(5)
        await page.get_by_label("Time of line 2").fill("4")
        await page.get_by_label("Time of line 2").press("Enter")
        await page.get_by_label("Look of line 3").select_option("red")
        await page.get_by_label("Lines are placed in").select_option("beat")
        await page.get_by_role("button", name="Remove line 5").click()
        await expect(page.locator(".cue-lines li")).to_have_count(4)
        kept: dict[str, Any] = {}

        async def is_kept() -> bool:
            kept.update((await show.client.call("GET", "/api/v1/cues/show")).json())
            return len(kept["lines"]) == 4

        await until(is_kept, 30, "the list on the server")
        await page.set_viewport_size(PHONE)
        unreachable = await out_of_reach(page)

    assert (kept["clock"], kept["loop"], kept["length"]) == ("beat", True, 40)
    assert [(line.get("at", 0), line["look"]) for line in kept["lines"]] == [
        *((0, "red"), (4, "green"), (16, "red"), (24, "grey")),
    ]
    assert unreachable == []


async def test_lines_of_a_cue_list_are_labelled_moved_added_and_jumped_to_on_the_page(
    browser: Browser, show: DoubleProcess
) -> None:
    async def kept() -> dict[str, Any]:
        answer = await show.client.call("GET", "/api/v1/cues/main-set")
        return dict(answer.json()) if answer.status == 200 else {"lines": []}

    async def lines_are(*wanted: dict[str, Any]) -> None:
        now: list[Any] = []

        async def same() -> bool:
            now[:] = (await kept())["lines"]
            return now == list(wanted)

        try:
            await until(same, 30, f"{wanted} on the server")
        except AssertionError as error:
            shown = await page.locator("#cues [role=alert]").inner_text()
            raise AssertionError(f"{now} on the server; the page says: {shown}") from error

    async with opened(browser, show.url) as page:
        await state(page, "idle")
        await page.locator("#cues summary").click()
        await page.get_by_role("button", name="New list").click()
        await expect(page.locator(".cue-lines > li")).to_have_count(5)
        for _ in range(3):
            await page.get_by_role("button", name="Remove line 3").click()
        await page.locator("#cue-edit").click()
        await page.locator("#cue-name").fill("Main set")
        await page.locator("#cue-name").press("Enter")
        red, green = {"look": "red"}, {"at": 8, "look": "green"}
        await lines_are(red, green)

        await page.get_by_label("Label of line 1", exact=True).fill("verse")
        await page.get_by_label("Label of line 1", exact=True).press("Enter")
        await page.get_by_label("What comes after line 2").select_option("verse")
        await page.get_by_label("Times of the jump of line 2").fill("2")
        await page.get_by_label("Times of the jump of line 2").press("Enter")
        await page.get_by_label("Seconds to line 2").fill("3")
        await page.get_by_label("Seconds to line 2").press("Enter")
        await page.get_by_label("Fresh caches with line 2").check()
        end = green | {"jump": "verse", "times": 2, "transition_s": 3, "event": "reset"}
        await lines_are(red | {"label": "verse"}, end)
        await page.get_by_label("Label of line 1", exact=True).fill("intro")  # jumps go with it
        await page.get_by_label("Label of line 1", exact=True).press("Enter")
        await page.get_by_role("button", name="Add a line after line 1").click()
        await page.get_by_label("Look of line 2").select_option("blue")
        added = {"at": 4, "look": "blue"}
        await lines_are(red | {"label": "intro"}, added, end | {"jump": "intro"})
        await page.get_by_role("button", name="Move down line 2").click()
        await lines_are(red | {"label": "intro"}, end | {"at": 4, "jump": "intro"}, added | {"at": 8})
        await page.get_by_role("button", name="Move up line 2").click()  # then the jump would lead nowhere
        await expect(page.locator("#cues [role=alert]")).to_contain_text("no earlier line with the label")
        await lines_are(red | {"label": "intro"}, end | {"at": 4, "jump": "intro"}, added | {"at": 8})
        await expect(page.get_by_label("Look of line 1")).to_have_value("red")  # as the server has it
        await page.get_by_role("button", name="Remove line 1").click()
        for key in ("jump", "times"):
            end.pop(key)
        await lines_are(end | {"at": 4}, added | {"at": 8})
        await page.get_by_label("Lines are placed in").select_option("chunk")
        end.pop("at")
        await lines_are(end | {"chunk": 4}, {"chunk": 8, "look": "blue"})
        reach = {"desktop": await out_of_reach(page)}
        await page.set_viewport_size(PHONE)
        reach["phone"] = await out_of_reach(page)
        names = (await show.client.call("GET", "/api/v1/cues")).json()["cues"]

    assert names == ["main-set"]
    assert reach == {"desktop": [], "phone": []}


async def test_the_clean_feed_shows_the_stream_alone_and_obeys_freeze_and_blackout_at_once(
    browser: Browser, show: DoubleProcess
) -> None:
    async with opened(browser, show.url) as page:
        await start(page, "LongLive")
        await page.keyboard.press("1")
        await colour(page, "red")
        async with page.context.expect_page() as opening:
            await page.keyboard.press("o")
        feed = await opening.value
        await state(feed, "streaming")
        await colour(feed, "red")
        looks = await feed.evaluate(
            "[getComputedStyle(document.body).cursor, document.body.innerText.trim()]"
        )

        await page.keyboard.press("f")
        await feed.wait_for_selector(".held", state="visible")
        await page.keyboard.press("2")
        await colour(page, "green")  # below what is shown
        frozen = await shown(feed)
        await page.keyboard.press("b")
        await feed.wait_for_selector(".curtain", state="visible")
        black = await shown(feed)
        await feed.keyboard.press("b")
        await feed.keyboard.press("f")
        await feed.wait_for_selector(".held", state="hidden")
        await expect(page.locator("#badge")).to_be_hidden()
        moving = await shown(feed)
        await feed.keyboard.press("m")
        await feed.keyboard.press("u")
        await feed.wait_for_selector("canvas.smooth", state="visible")
        smooth = await shown(feed)
        fit = await feed.locator("#feed").get_attribute("data-fit")
        await feed.mouse.click(100, 100)
        await feed.wait_for_function("() => document.fullscreenElement !== null")

        await page.get_by_role("button", name="Stop", exact=True).first.click()
        await state(feed, "nothing")
        nothing = await shown(feed)

    near = {name: np.asarray(rgb) for name, rgb in COLOURS.items()}
    assert looks == ["none", ""]
    assert np.abs(frozen - near["red"]).max() < 40
    assert black.max() < 5
    assert np.abs(moving - near["green"]).max() < 40
    assert np.abs(smooth - near["green"]).max() < 40
    assert fit == "cover"
    assert nothing.max() < 5


TWO_DISPLAYS = """
Object.defineProperty(screen, "isExtended", { get: () => true });
const here = { availLeft: 0 };
const there = { availLeft: 1920, availTop: 40, availWidth: 1280, availHeight: 720 };
window.getScreenDetails = async () => ({ screens: [here, there], currentScreen: here });
window.open = (address, name, features) => (window.openedWith = features);
"""


async def test_the_clean_feed_opens_on_the_other_display(browser: Browser, show: DoubleProcess) -> None:
    async with opened(browser, "about:blank") as page:
        await page.context.add_init_script(TWO_DISPLAYS)
        await page.goto(show.url)
        await state(page, "idle")
        await page.get_by_role("button", name="Clean feed").click()
        await page.wait_for_function("() => window.openedWith")
        features = await page.evaluate("openedWith")

    assert features == "popup,left=1920,top=40,width=1280,height=720"


async def shown(page: Page) -> Any:
    """Mean colour of what the window shows a little below its middle."""
    size = page.viewport_size or {"width": 960, "height": 540}
    return await mean_colour(page, size["width"] / 2 - 40, size["height"] * 0.7, 80, 20)


async def test_the_keys_are_explained_and_do_nothing_while_somebody_writes(
    browser: Browser, show: DoubleProcess
) -> None:
    async with opened(browser, show.url) as page:
        await start(page, "LongLive")
        await page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keys")
        await expect(dialog).to_contain_text("Blackout, at once")
        await page.keyboard.press("1")  # not behind the dialog
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()

        prompt = field(page, "Prompt 1")
        await prompt.fill("")
        await prompt.type("1 b f 2?")

        await expect(prompt).to_have_value("1 b f 2?")
        await expect(page.locator("#blackout")).to_have_attribute("aria-pressed", "false")
        assert "red" not in show.prompts()


async def test_a_look_is_previewed_in_a_second_stream_where_there_is_room(
    browser: Browser, show: DoubleProcess, tmp_path: Path
) -> None:
    roomy = await asyncio.to_thread(DoubleProcess, tmp_path / "home", {"WANSTREAM_MAX_SESSIONS": "2"})
    await put(roomy, "/api/v1/looks", book("red", "blue"))

    async def preview(page: Page) -> None:
        await start(page, "LongLive")
        await page.keyboard.press("1")
        await colour(page, "red")
        await page.get_by_role("button", name="Edit", exact=True).click()
        await page.get_by_role("button", name="Preview Blue", exact=True).click()

    async def one_is_left() -> bool:
        return len((await roomy.client.call("GET", "/api/v1/streams")).json()["streams"]) == 1

    async with opened(browser, show.url) as page:  # one stream is all it has room for
        await preview(page)
        await expect(page.locator("#look-preview [role=alert]")).to_contain_text("needs room")
    async with opened(browser, roomy.url) as page:
        await preview(page)
        await page.wait_for_function("() => document.querySelector('#look-preview img').naturalWidth > 0")
        await until(lambda: roomy.prompts() == ["blue"], 30, "the preview")
        await colour(page, "red")
        await page.get_by_role("button", name="Close preview").click()
        await until(one_is_left, 30, "the preview's stream has ended")
    await asyncio.to_thread(roomy.stop)


FAKE_MIDI = """
window.fakePort = { name: "Fake pads", onmidimessage: null };
navigator.requestMIDIAccess = async () => ({ inputs: new Map([["1", fakePort]]), onstatechange: null });
window.midi = (bytes, time = performance.now()) => fakePort.onmidimessage({ data: bytes, timeStamp: time });
"""


async def test_a_midi_controller_is_learned_and_moves_sliders_looks_cues_and_the_tempo(
    browser: Browser, show: DoubleProcess
) -> None:
    await put(show, "/api/v1/cues/evening", {"clock": "time", "lines": [{"look": "blue"}]})
    async with opened(browser, "about:blank") as page:
        await page.context.add_init_script(FAKE_MIDI)
        await page.goto(show.url)
        await start(page, "LongLive")
        await page.locator("#midi summary").click()
        await page.locator("#cues summary").click()
        await page.get_by_role("button", name="Use MIDI").click()
        await expect(page.locator("#midi-state")).to_have_text("(Fake pads)")
        await page.get_by_role("button", name="Learn").click()
        for control, message in (
            (field(page, "VACE strength"), [0xB2, 7, 1]),
            (page.get_by_role("button", name="Green", exact=True), [0x99, 36, 100]),
            (page.locator("#cue-play"), [0x99, 37, 100]),
            (page.locator("#blackout"), [0xB2, 20, 127]),
        ):
            await control.focus()
            count = await page.locator(".mappings li").count()
            await page.evaluate("bytes => midi(bytes)", message)
            await expect(page.locator(".mappings li")).to_have_count(count + 1)
        await page.get_by_role("button", name="Red", exact=True).click()  # chooses, and recalls nothing
        await page.locator("#midi-learn").click()

        await page.reload()  # the mappings are the server's
        await state(page, "streaming")
        await page.locator("#midi summary").click()
        await page.get_by_role("button", name="Use MIDI").click()
        await page.evaluate("() => { for (let value = 0; value <= 127; value += 1) midi([0xb2, 7, value]); }")
        await until(lambda: show.chunks()[-1]["parameters"]["vace_context_scale"] == 2, 30, "the slider")
        await page.evaluate("() => { midi([0x99, 36, 90]); midi([0x89, 36, 0]); }")
        await colour(page, "green")
        await page.evaluate("() => midi([0x99, 37, 90])")
        await colour(page, "blue")
        await page.evaluate("() => midi([0xb2, 20, 127])")
        await expect(page.locator("#blackout")).to_have_attribute("aria-pressed", "true")
        # Two beats and one more of a clock at 150 BPM.
        await page.evaluate(
            "() => { midi([0xfa]); for (let n = 0; n <= 72; n += 1) midi([0xf8], n * 400 / 24); }"
        )
        await expect(page.locator("#tempo-state")).to_contain_text("150 BPM, MIDI clock")
        said = (await show.client.call("GET", "/api/v1/midi")).json()["midi"]

    assert [mapping["type"] for mapping in said] == ["continuous", "trigger", "trigger", "trigger"]
    assert said[0]["source"] == {"midi_cc": 7, "midi_note": None, "channel": 2, "encoding": None}
    assert "red" not in show.prompts()


async def test_knobs_of_14_bit_and_endless_ones_are_learned_and_reach_every_value(
    browser: Browser, show: DoubleProcess
) -> None:
    await put(show, "/api/v1/midi", {"midi": []})
    lines = [{"look": "red"}, {"at": 4, "look": "green"}, {"at": 8, "look": "blue"}]
    await put(show, "/api/v1/cues/evening", {"clock": "time", "lines": lines})

    async def worker_has(value: float) -> None:
        def there() -> bool:
            return abs(show.chunks()[-1]["parameters"]["vace_context_scale"] - value) < 1e-9

        await until(there, 30, f"a strength of {value}")

    async def turn(*messages: Sequence[int]) -> None:
        await page.evaluate("all => all.forEach((bytes) => midi(bytes))", list(messages))

    async with opened(browser, "about:blank") as page:
        await page.context.add_init_script(FAKE_MIDI)
        await page.goto(show.url)
        await start(page, "LongLive")
        for part in ("midi", "cues"):
            await page.locator(f"#{part} summary").click()
        await page.get_by_role("button", name="Use MIDI").click()
        await page.get_by_role("button", name="Learn").click()
        strength = field(page, "VACE strength")
        await strength.focus()
        await turn([0xB0, 5, 100], [0xB0, 37, 20])  # both halves of one knob
        await expect(page.get_by_label("Values of controller 5, channel 1")).to_have_value("14_bit")
        await page.get_by_role("button", name="Go to line 3").focus()
        await turn([0x99, 40, 100])
        await expect(page.locator(".mappings")).to_contain_text("note 40, channel 10 → evening, line 3")
        await page.locator("#midi-learn").click()

        await turn([0xB0, 5, 64], [0xB0, 37, 1])
        await worker_has(round(2 * (64 * 128 + 1) / 16_383, 5))  # between the slider's own steps
        await turn([0xB0, 5, 127], [0xB0, 37, 127])
        await worker_has(2)
        await turn([0xB0, 5, 32])  # a high part alone
        await worker_has(round(2 * 32 * 128 / 16_383, 5))
        await turn([0x99, 40, 100])
        await colour(page, "blue")

        for encoding, left, right in (
            ("twos_complement", 127, 1),
            ("binary_offset", 63, 65),
            ("signed_bit", 65, 1),
        ):
            await page.get_by_label("Values of controller 5, channel 1").select_option(encoding)
            await expect(page.get_by_label("Values of controller 5, channel 1")).to_have_value(encoding)
            await until(lambda wanted=encoding: encoding_of(show) == wanted, 30, "the mapping is kept")
            await turn(*[[0xB0, 5, left]] * 200)  # far beyond the end
            await worker_has(0)
            await turn(*[[0xB0, 5, right]] * 12, *[[0xB0, 5, left]] * 2)
            await worker_has(
                round(round(20 / 127 / 0.01) * 0.01, 2)
            )  # ten steps of 127, on the slider's grid


def encoding_of(server: DoubleProcess) -> str:
    mappings = server.client.request("GET", "/api/v1/midi").json()["midi"]
    return str(mappings[0]["source"]["encoding"])


SAY_LOOKAHEAD = """() => {
    const send = RTCDataChannel.prototype.send;
    RTCDataChannel.prototype.send = function (text) {
        const { lookahead_ms: ahead } = JSON.parse(text);
        if (ahead !== undefined) tellLookahead(ahead);
        send.call(this, text);
    };
}"""


async def test_changes_wait_for_the_beat_of_the_page_and_the_delay_is_shown_and_made_up_for(
    browser: Browser, show: DoubleProcess
) -> None:
    async with opened(browser, show.url) as page:
        await start(page, "LongLive")
        await page.locator("#tempo summary").click()
        await field(page, "BPM").fill("240")
        await field(page, "BPM").press("Enter")
        await expect(page.locator("#tempo-on")).to_have_attribute("aria-pressed", "true")
        await page.keyboard.press("Tab")
        await page.get_by_label("Changes and cues wait for").select_option("bar")
        await page.get_by_role("button", name="Tap", exact=True).focus()
        await page.keyboard.press("1")
        await colour(page, "red")
        await expect(page.locator("#cue-delay")).to_contain_text("varying by", timeout=30_000)
        measured = {"median": 400.0, "spread": 30.0, "count": 20}

        async def known(route: Route) -> None:
            body = await (await route.fetch()).json()
            for numbers in body["sessions"].values():
                numbers["change_to_picture_ms"] = measured
            await route.fulfill(json=body)

        sent: list[float] = []
        await page.expose_function("tellLookahead", lambda ahead: sent.append(ahead))
        await page.evaluate(SAY_LOOKAHEAD)
        await page.route("**/api/v1/session/metrics", known)
        await expect(page.locator("#cue-delay")).to_contain_text("400 ms, varying by 30 ms")
        await page.get_by_label("Begin earlier by the delay to the picture").check()
        await until(lambda: sent[-1:] == [400], 30, "changes begin so much earlier")
        measured["median"] = 1600.0  # longer than the most: what is left after whole beats of 250 ms
        await until(lambda: sent[-1:] == [100], 30, "less whole beats")
        timing = (await show.client.call("GET", "/api/v1/tempo/status")).json()
        assert (timing["enabled"], timing["bpm"]) == (True, 240)
        for _ in range(3):
            await page.keyboard.press("t")
        await expect(page.locator("#trust")).to_contain_text("Change to picture")
        await expect(page.locator("#trust")).to_contain_text("TensorRT")


async def test_a_cue_list_across_a_minute_goes_on_while_its_page_is_loaded_again(minute: MinuteShow) -> None:
    """The last one: it began with the first test of this module."""
    seen = await minute.task

    assert seen["ids"][0] == seen["ids"][1]
    assert seen["shown"] == list(COLOURS), "each look once, in order"
    assert seen["took_s"] >= 60
