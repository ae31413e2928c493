"""A server that loads its pipeline with its operator's parameters, and that viewers cannot change."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from gateway.__main__ import engine_sets, make_serving
from gateway.access.auth import is_operators_only
from gateway.app import create_app
from gateway.config import Config
from tests.server.browser import field, notice, opened, start
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import pipeline_status, wait_status
from tests.server.peer import Peer

ADMIN = {"Authorization": "Bearer the-operator's"}
SIZE = {"height": 96, "width": 128}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
PROMPTS = {"prompts": [{"text": "a", "weight": 1.0}]}

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    env = {
        "PIPELINE": "longlive",
        "WANSTREAM_PIPELINE_PARAMS": '{"height": 96, "width": 128}',
        "WANSTREAM_LOCKED": "on",
        "WANSTREAM_MAX_SESSIONS": "2",
        "WANSTREAM_ADMIN_TOKEN": "the-operator's",
    }
    process = DoubleProcess(tmp_path_factory.mktemp("locked"), env)
    yield process
    process.stop()


async def test_the_pipeline_is_loaded_with_the_operator_s_parameters(locked: DoubleProcess) -> None:
    status = await wait_status(locked.client, "loaded")

    assert status["pipeline_id"] == "longlive"
    assert status["load_params"] | SIZE == status["load_params"]
    assert status["locked"] is True


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/pipeline/load", {"pipeline_id": "memflow"}),
        ("POST", "/api/v1/pipeline/load", {"pipeline_id": "longlive", "load_params": {"height": 128}}),
        ("POST", "/api/v1/pipeline/load", {"pipeline_id": "longlive", "load_params": {"seed": 7}}),
        ("POST", "/api/v1/pipeline/unload", None),
        ("POST", "/api/v1/models/download", {"pipeline_id": "longlive"}),
        ("POST", "/api/v1/pipeline/prepare", {"pipeline_id": "longlive"}),
        ("DELETE", "/api/v1/pipeline/prepare?pipeline_id=longlive", None),
        ("DELETE", "/api/v1/pipeline/merged-sets", None),
        ("POST", "/api/v1/loras", {"url": "https://huggingface.co/a/b/resolve/main/c.safetensors"}),
        ("POST", "/api/v1/lora/upload?filename=a.safetensors", {}),
        ("POST", "/api/v1/lora/download", {"source": "url", "url": "https://example.org/a.safetensors"}),
        ("PUT", "/api/v1/lora/a.safetensors/provenance", {"source": "local"}),
        ("DELETE", "/api/v1/loras/a", None),
        ("PUT", "/api/v1/cues/show", {"lines": [{"event": "reset"}]}),
        ("DELETE", "/api/v1/cues/show", None),
        ("PUT", "/api/v1/looks", {"version": 1}),
        ("PUT", "/api/v1/looks/calm", {"set": {"base_seed": 1}}),
        ("DELETE", "/api/v1/looks/calm", None),
        ("POST", "/api/v1/looks/calm/move", {"to": 0}),
        ("PUT", "/api/v1/midi", {"midi": []}),
    ],
)
async def test_viewers_change_nothing_and_are_told_what_to_do(
    method: str, path: str, body: object, locked: DoubleProcess
) -> None:
    before = await wait_status(locked.client, "loaded")

    answer = await locked.client.call(method, path, json_body=body)

    assert answer.status == 403
    assert (
        "locked. Use longlive, which it holds; to change it, send the admin token" in answer.json()["detail"]
    )
    assert await pipeline_status(locked.client) == before


# What viewers may do in a locked server; what is about one stream is open to who knows its id.
OPEN = {
    *(
        "GET /",
        "GET /watch",
        "GET /view",
        "GET /api/v1/pipeline/prepare",
        "GET /api/v1/pipeline/merged-sets",
        "GET /static/<path:name>",
        "GET /docs",
        "GET /docs/assets/<name>",
    ),
    *("GET /docs/start.js", "GET /openapi.json", "GET /health", "GET /ready", "GET /metrics"),
    *("GET /api/v1/hardware/info", "GET /api/v1/pipelines/schemas", "GET /api/v1/pipeline/status"),
    "POST /api/v1/pipeline/load",  # of what is there
    *("GET /api/v1/models/status", "GET /api/v1/loras", "GET /api/v1/lora/list"),
    *("GET /api/v1/cues", "GET /api/v1/cues/<name>", "GET /api/v1/looks", "GET /api/v1/looks/<name>"),
    *("GET /api/v1/midi", "GET /api/v1/tempo/status", "GET /api/v1/tempo/sources"),
    *("GET /api/v1/assets", "POST /api/v1/assets", "GET /api/v1/assets/<path:name>"),
    *("GET /api/v1/assets//<path:name>", "POST /api/v1/osc/inventory"),
    *("GET /api/v1/webrtc/ice-servers", "POST /api/v1/webrtc/offer"),
    *(f"{method} /api/v1/takes/<take>{rest}" for method in ("GET",) for rest in ("", "/video", "/data")),
    *(
        f"{method} {root}/{kind}"
        for method in ("GET", "POST")
        for root in ("", "/api/v1")
        for kind in ("whip", "whep")
    ),
}
PUBLICATIONS = {
    *(f"{method} /api/v1/streams/<stream_id>/publications" for method in ("GET", "POST")),
    "DELETE /api/v1/streams/<stream_id>/publications/<publication_id>",
}
HEADLESS = (("POST", "start"), ("POST", "stop"), ("GET", "output.ts"))
OF_ONE_STREAM = ("<stream_id>", "<session_id>")


async def test_every_address_is_judged_for_a_locked_server(tmp_path: Path) -> None:
    """A new one is the operator's alone, or it is about one stream, or somebody has thought about it."""
    config = Config.from_env({"WANSTREAM_HOME": str(tmp_path)})
    app = create_app(config, make_serving(config, engine_sets(config)))

    closed, left = set(), set()
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            address = f"{method} {rule.rule}"
            if is_operators_only(app.view_functions[rule.endpoint]):
                closed.add(address)
            elif not any(name in rule.rule for name in OF_ONE_STREAM):
                left.add(address)

    assert left == OPEN
    assert {
        "POST /api/v1/pipeline/unload",
        "POST /api/v1/tempo/tap",
        "GET /api/v1/streams",
        *PUBLICATIONS,
    } < closed


@pytest.mark.parametrize(
    "address",
    [
        *(f"POST /api/v1/tempo/{name}" for name in ("enable", "disable", "set_tempo", "tap")),
        *(f"GET /api/v1/session/{name}" for name in ("metrics", "frame", "parameters")),
        *(f"{method} /api/v1/streams" for method in ("GET", "POST")),
        *(f"{method} /api/v1/session/{name}" for method, name in HEADLESS),
        *("GET /api/v1/recordings", "DELETE /api/v1/takes/a", "GET /api/v1/local-video/ndi/senders"),
        *(f"GET /api/v1/osc/{name}" for name in ("status", "paths", "docs", "stream")),
        "PUT /api/v1/osc/settings",
    ],
)
async def test_viewers_hear_nothing_of_other_streams_and_change_nothing_for_them(
    address: str, locked: DoubleProcess
) -> None:
    await wait_status(locked.client, "loaded")
    method, path = address.split()

    answer = await locked.client.call(method, path, json_body=None if method == "GET" else {})

    assert answer.status == 403
    assert "This server is locked." in answer.json()["detail"]
    assert answer.json()["detail"].endswith("; for this, send the admin token.")


async def test_viewers_reach_no_stream_whose_id_they_do_not_know(locked: DoubleProcess) -> None:
    await wait_status(locked.client, "loaded")
    async with Peer(locked.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(2)
        paths = [f"/api/v1/streams/{name}/parameters" for name in ("main", "headless", peer.session_id)]
        statuses = [(await locked.client.call("GET", path)).status for path in paths]
        watched = await locked.client.call("GET", "/api/v1/streams", headers=ADMIN)

    assert statuses == [404, 404, 200]
    assert [each["id"] for each in watched.json()["streams"]] == [peer.session_id]


@pytest.mark.parametrize("params", [None, {}, SIZE, {"height": 96}], ids=str)
async def test_a_load_of_what_is_there_is_answered_as_ever(
    params: dict[str, int] | None, locked: DoubleProcess
) -> None:
    await wait_status(locked.client, "loaded")
    body = {"pipeline_ids": ["longlive"], "load_params": params}

    answer = await locked.client.call("POST", "/api/v1/pipeline/load", json_body=body)

    assert (answer.status, answer.json()["status"]) == (200, "loaded")
    assert answer.json()["load_params"] == (await pipeline_status(locked.client))["load_params"]


async def test_viewers_stream_and_upload_pictures(locked: DoubleProcess) -> None:
    await wait_status(locked.client, "loaded")
    async with Peer(locked.client) as peer:
        await peer.connect(PROMPTS)
        frames = await peer.wait_frames(3)

    assert (frames[-1].width, frames[-1].height) == (128, 96)
    upload = await locked.client.call("POST", "/api/v1/assets?filename=a.png", body=PNG)
    assert upload.status == 200


async def test_viewers_change_their_own_stream_only(locked: DoubleProcess) -> None:
    await wait_status(locked.client, "loaded")
    for_all, body = "/api/v1/session/parameters", {"noise_scale": 0.3}
    async with Peer(locked.client) as first, Peer(locked.client) as second:
        await first.connect(PROMPTS)
        await second.connect(PROMPTS)
        refused = await locked.client.call("POST", for_all, json_body=body)
        own = f"/api/v1/session/{first.session_id}/parameters"
        changed = await locked.client.call("POST", own, json_body=body)
        scales = [await noise_scale(locked, peer) for peer in (first, second)]
        by_operator = await locked.client.call("POST", for_all, json_body=body, headers=ADMIN)
        scales_then = [await noise_scale(locked, peer) for peer in (first, second)]

    assert (refused.status, changed.status, by_operator.status) == (403, 200, 200)
    assert "Change your own stream at /api/v1/session/SESSION_ID/parameters" in refused.json()["detail"]
    assert scales[0] == 0.3 != scales[1]
    assert scales_then == [0.3, 0.3]


async def noise_scale(server: DoubleProcess, peer: Peer) -> float | None:
    answer = await server.client.call("GET", f"/api/v1/session/{peer.session_id}/parameters")
    scale: float | None = answer.json()["parameters"].get("noise_scale")
    return scale


@pytest.mark.parametrize("name", ["current", "tail"])
async def test_only_the_operator_reads_the_log(name: str, locked: DoubleProcess) -> None:
    await wait_status(locked.client, "loaded")
    refused = await locked.client.call("GET", f"/api/v1/logs/{name}")
    allowed = await locked.client.call("GET", f"/api/v1/logs/{name}", headers=ADMIN)

    assert (refused.status, allowed.status) == (403, 200)
    assert "only its operator reads it; for this, send the admin token" in refused.json()["detail"]


async def test_the_page_streams_what_is_there_whatever_its_settings(
    browser: Browser, locked: DoubleProcess
) -> None:
    await wait_status(locked.client, "loaded")
    async with opened(browser, locked.url) as page:
        await start(page, "LongLive")

        await expect(notice(page, "Loaded with a remark")).to_contain_text("This server is locked")
        await expect(page.get_by_role("button", name="Unload")).to_be_hidden()
        await expect(page.get_by_role("link", name="Server log")).to_be_hidden()
        await expect(page.get_by_text("What is loaded here is its operator's choice.")).to_be_visible()
        await expect(field(page, "Output video")).to_be_visible()


async def test_the_page_shows_its_own_takes_and_numbers(browser: Browser, locked: DoubleProcess) -> None:
    await wait_status(locked.client, "loaded")
    async with opened(browser, locked.url) as page:
        await start(page, "LongLive")
        await page.locator("#details summary").click()
        await expect(page.locator("#server-numbers")).to_contain_text("Frames out")

        await page.locator("#record").click()
        await expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
        await page.locator("#record").click()
        await page.locator("#takes summary").click()

        await expect(page.locator("#takes-list li")).to_have_count(1)
        await expect(page.get_by_role("link", name="Download")).to_be_visible()
        await expect(page.get_by_role("button", name="Delete")).to_be_hidden()
        await expect(page.locator("#takes-error")).to_be_empty()


async def test_the_operator_changes_it_and_changes_it_back(locked: DoubleProcess) -> None:
    status = await locked.client.call("GET", "/api/v1/pipeline/status", headers=ADMIN)
    changed = await locked.client.call("POST", "/api/v1/pipeline/unload", headers=ADMIN)
    gone = await wait_status(locked.client, "not_loaded")

    body = {"pipeline_id": "longlive", "load_params": SIZE}
    back = await locked.client.call("POST", "/api/v1/pipeline/load", json_body=body, headers=ADMIN)

    assert status.json()["locked"] is False
    assert (changed.status, gone["pipeline_id"], back.status) == (200, None, 200)
    await wait_status(locked.client, "loaded")


async def test_a_page_opened_with_the_admin_token_keeps_it(locked: DoubleProcess) -> None:
    page = await locked.client.call("GET", "/?token=the-operator's")
    cookie = page.headers["set-cookie"].split(";")[0]

    status = await locked.client.call("GET", "/api/v1/pipeline/status", headers={"Cookie": cookie})

    assert status.json()["locked"] is False
    assert "the-operator's" not in locked.log


async def test_the_admin_token_opens_a_server_that_asks_for_one(tmp_path: Path) -> None:
    env = {"WANSTREAM_TOKEN": "viewers", "WANSTREAM_ADMIN_TOKEN": "the-operator's", "PIPELINE": "longlive"}
    server = DoubleProcess(tmp_path, {**env, "WANSTREAM_LOCKED": "on"})
    headers = {"Authorization": "Bearer viewers"}
    statuses = [
        server.client.request("POST", "/api/v1/pipeline/unload", headers=given).status
        for given in ({}, headers, ADMIN)
    ]
    server.stop()

    assert statuses == [401, 403, 200]
