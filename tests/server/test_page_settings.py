"""The settings panel of the built-in page: what it shows, what it sends, what it remembers."""

import pytest
from playwright.async_api import Browser, expect

from tests.server.browser import field, opened, start, state
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, session_parameters, wait_status
from tests.server.peer import until

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_space_in_a_text_field_does_not_pause(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        await field(page, "Prompt 1").fill("")
        await field(page, "Prompt 1").press("Space")
        typed = await field(page, "Prompt 1").input_value()

        assert typed == " "
        assert await state(page, "streaming", "paused") == "streaming"


async def test_controls_that_do_not_apply_are_hidden(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")

        await page.get_by_role("radio", name="Passthrough", exact=True).check()
        for label in ("Prompt 1", "Width", "Seed", "Noise", "Manage cache", "Weight of past frames"):
            await expect(field(page, label)).to_be_hidden()
        await page.get_by_role("radio", name="Krea Realtime Video", exact=True).check()
        for label in ("Prompt 1", "Width", "Seed", "Manage cache", "Weight of past frames"):
            await expect(field(page, label)).to_be_visible()
        await expect(field(page, "VACE strength")).to_be_hidden()


async def test_settings_reach_the_pipeline_from_the_first_chunk(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        await field(page, "Width").fill("260")  # not a multiple of 16: the page takes the nearest
        await field(page, "Height").fill("128")
        await field(page, "Seed").fill("7")
        await field(page, "Prompt 1").fill("a lighthouse")
        await field(page, "Step 4").fill("300")

        await page.get_by_role("button", name="Start").click()
        await state(page, "streaming")
        status = (await double.client.call("GET", "/api/v1/pipeline/status")).json()
        chunk = double.chunks()[0]

        assert {k: status["load_params"][k] for k in ("width", "height", "base_seed")} == {
            "width": 256,
            "height": 128,
            "base_seed": 7,
        }
        assert [prompt["text"] for prompt in chunk["active_prompts"]] == ["a lighthouse"]
        assert chunk["parameters"]["denoising_step_list"] == [1000, 750, 500, 300]


async def test_last_value_of_a_moved_slider_wins(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="StreamDiffusionV2", exact=True).check()
        await page.get_by_role("button", name="Start").click()
        await state(page, "streaming")

        for value in ("0.1", "0.9", "0.35"):
            await field(page, "Noise").fill(value)

        async def arrived() -> bool:
            return (await session_parameters(double.client)).get("noise_scale") == 0.35

        await until(arrived, 30, "noise_scale 0.35 on the server")


async def test_enter_moves_to_a_new_prompt_by_a_transition(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        await page.get_by_role("spinbutton", name="Transition").fill("4")

        await field(page, "Prompt 1").fill("a neon jellyfish")
        await field(page, "Prompt 1").press("Enter")

        def arrived() -> bool:
            return [prompt["text"] for prompt in double.chunks()[-1]["active_prompts"]] == [
                "a neon jellyfish"
            ]

        await until(arrived, 30, "the new prompt")
        steps = [chunk["blend_t"] for chunk in double.chunks() if chunk["blend_t"] is not None]
        assert steps[-4:] == pytest.approx([0, 1 / 3, 2 / 3, 1])


async def test_switching_the_pipeline_keeps_the_stream(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        session_id = await page.evaluate("wanstream.sessionId")

        await page.get_by_role("radio", name="MemFlow", exact=True).check()
        await page.get_by_role("button", name="Switch").click()

        async def switched() -> bool:
            status = await double.client.call("GET", "/api/v1/pipeline/status")
            return bool(status.json()["pipeline_id"] == "memflow")

        await until(switched, 30, "memflow is loaded")
        await state(page, "streaming")
        assert await page.evaluate("wanstream.sessionId") == session_id
        await expect(page.get_by_text("Loaded: MemFlow")).to_be_visible()


async def test_settings_of_another_pipeline_wait_for_the_switch(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        await page.get_by_role("radio", name="MemFlow", exact=True).check()
        await field(page, "Step 2").fill("600")
        await field(page, "Prompt 1").fill("sent at once")
        await field(page, "Prompt 1").press("Enter")

        async def prompt_arrived() -> bool:
            parameters = await session_parameters(double.client)
            return bool(parameters["prompts"][0]["text"] == "sent at once")

        await until(prompt_arrived, 30, "the prompt on the server")
        assert (await session_parameters(double.client))["denoising_step_list"] == [1000, 750, 500, 250]


async def test_reload_of_the_page_keeps_the_settings(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="MemFlow", exact=True).check()
        await field(page, "Prompt 1").fill("a quiet harbour")
        await field(page, "Seed").fill("11")
        await field(page, "Seed").press("Tab")

        await page.reload()
        await state(page, "idle")

        await expect(page.get_by_role("radio", name="MemFlow", exact=True)).to_be_checked()
        await expect(field(page, "Prompt 1")).to_have_value("a quiet harbour")
        await expect(field(page, "Seed")).to_have_value("11")


async def test_change_over_http_shows_on_the_page(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        body = {"prompts": ["from a script"], "denoising_step_list": [900, 400]}
        await double.client.call("POST", "/api/v1/session/parameters", json_body=body)

        await expect(field(page, "Prompt 1")).to_have_value("from a script")
        await expect(field(page, "Step 2")).to_have_value("400")
        await expect(field(page, "Step 3")).to_have_count(0)


async def test_a_load_that_began_elsewhere_is_shown(browser: Browser, double: DoubleProcess) -> None:
    double.set_faults(load_delay_s=600)
    await double.client.call("POST", "/api/v1/pipeline/load", json_body={"pipeline_id": "memflow"})
    async with opened(browser, double.url) as page:
        await state(page, "idle")

        await expect(page.get_by_role("radio", name="MemFlow", exact=True)).to_be_checked()
        await expect(page.locator("#placeholder-title")).to_have_text("Loading MemFlow")
        await expect(page.get_by_text("Loading MemFlow.", exact=True)).to_be_visible()

        await double.client.call("POST", "/api/v1/pipeline/unload")
        double.reset_faults()
        await load(double.client, "memflow")
        await expect(page.get_by_text("Loaded: MemFlow")).to_be_visible(timeout=30_000)
        await expect(page.locator("#placeholder-title")).to_have_text("MemFlow")


async def test_how_the_server_runs_what_is_loaded_is_told(browser: Browser, double: DoubleProcess) -> None:
    await load(double.client, "longlive")
    async with opened(browser, double.url) as page:
        await expect(page.locator("#loaded")).to_contain_text("(TensorRT on the GPU, 8 streams, 2.3 GB).")

        await load(double.client, "passthrough")
        await expect(page.locator("#loaded")).to_have_text("Loaded: Passthrough.", timeout=10_000)


async def test_a_load_that_failed_on_the_server_is_told(browser: Browser, double: DoubleProcess) -> None:
    double.set_faults(load_error="the disk is on fire")
    await double.client.call("POST", "/api/v1/pipeline/load", json_body={"pipeline_id": "memflow"})
    await wait_status(double.client, "error")
    async with opened(browser, double.url) as page:
        await state(page, "idle")

        await expect(page.locator("#loaded")).to_contain_text("the disk is on fire")


async def test_an_example_takes_the_place_of_the_prompt(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await expect(page.get_by_role("button", name="a blue box")).to_be_hidden()
        await start(page, "RewardForcing")

        await page.get_by_role("button", name="a blue box").click()

        async def arrived() -> bool:
            parameters = await session_parameters(double.client)
            return "a blue box" in str(parameters)  # as the prompt, or as a transition's target

        await until(arrived, 30, "the example on the server")
        assert await field(page, "Prompt 1").input_value() == "a blue box"
        assert await page.get_by_text("It knows two prompts.").is_visible()
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        await expect(page.get_by_text("It knows two prompts.")).to_be_hidden()
