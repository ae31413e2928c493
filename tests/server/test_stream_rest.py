"""Streams over REST: made, changed, looked at and listened to, with tokens that open more or less of them."""

import asyncio
import io
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import av
import httpx
import pytest
from PIL import Image

from tests.server.client import Answer
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until
from tests.server.test_viewers import join

ROOT = "/api/v1/streams"
SIZE = {"height": 96, "width": 128}


@pytest.fixture
async def server(double_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """The double with LongLive, and no stream left over."""
    double_server.reset_faults()
    await load(double_server.client, "longlive", SIZE)
    yield double_server
    for stream in (await double_server.client.call("GET", ROOT)).json()["streams"]:
        await double_server.client.call("DELETE", f"{ROOT}/{stream['id']}")


async def made(server: DoubleProcess, **body: Any) -> dict[str, Any]:
    answer = await server.client.call("POST", ROOT, json_body=body)
    assert answer.status == 201, answer.text
    return dict(answer.json())


async def call(server: DoubleProcess, method: str, path: str, body: Any = None) -> Answer:
    return await server.client.call(method, f"{ROOT}/{path}", json_body=body)


async def read_parts(server: DoubleProcess, path: str, count: int) -> list[tuple[bytes, Image.Image]]:
    """JPEGs of a multipart answer, by their Content-Length."""
    found = []
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as client,
        client.stream("GET", path) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
        rest = b""
        async for piece in answer.aiter_bytes():
            rest += piece
            while b"\r\n\r\n" in rest:
                head, _, after = rest.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                if len(after) < length + 2:
                    break
                assert head.startswith(b"--" + boundary)
                found.append((after[:length], Image.open(io.BytesIO(after[:length]))))
                rest = after[length + 2 :]
            if len(found) >= count:
                return found
    raise AssertionError(f"the sequence ended after {len(found)} pictures")


async def events_of(server: DoubleProcess, stream_id: str) -> AsyncIterator[dict[str, Any]]:
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as client,
        client.stream("GET", f"{ROOT}/{stream_id}/events") as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


async def test_a_stream_is_made_shown_listed_and_deleted_without_a_browser(server: DoubleProcess) -> None:
    answer = await server.client.call("POST", ROOT, json_body={"name": "show", "drivers": "many"})
    stream = answer.json()
    again = await server.client.call("POST", ROOT, json_body={"name": "show"})
    listed = (await server.client.call("GET", ROOT)).json()["streams"]
    shown = (await call(server, "GET", "show")).json()
    deleted = [(await call(server, "DELETE", "show")).status for _ in range(2)]
    gone = await call(server, "GET", "show")

    assert answer.status == 201
    assert answer.headers["location"] == f"{ROOT}/show"
    assert again.status == 409
    assert stream == shown == listed[0]
    assert (stream["id"], stream["state"], stream["kept"], stream["drivers"]) == (
        "show",
        "idle",
        True,
        "many",
    )
    assert stream["source"] == {"kind": "none"}
    assert stream["mjpeg_url"] == f"http://127.0.0.1:{server.port}{ROOT}/show/mjpeg"
    assert stream["whep_url"].endswith("/whep/show")
    assert stream["whip_url"].endswith("/whip/show")
    assert "tokens" not in stream
    assert deleted == [204, 204]
    assert gone.json() == {"detail": "Stream show not found"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "all"}, 422),
        ({"name": "A b"}, 422),
        ({"drivers": "two"}, 422),
        ({"lease_s": -1}, 422),
        ({"parameters": {"noise_scale": 9}}, 422),
        ({"source": {"kind": "telepathy"}}, 400),
        ({"source": {"kind": "file", "path": "missing.mp4"}}, 404),
        ({"source": {"kind": "file", "path": "../../etc/passwd"}}, 400),
    ],
)
async def test_a_stream_that_cannot_be_made_leaves_nothing_behind(
    server: DoubleProcess, body: dict[str, Any], status: int
) -> None:
    answer = await server.client.call("POST", ROOT, json_body=body)

    assert answer.status == status, answer.text
    assert (await server.client.call("GET", ROOT)).json() == {"streams": []}


async def test_nothing_is_generated_for_nobody_and_a_reader_of_pictures_is_somebody(
    server: DoubleProcess,
) -> None:
    before = len(server.sessions())
    await made(server, name="show", parameters={"prompts": "a"})
    no_picture = await call(server, "GET", "show/frame")
    pictures = await read_parts(server, f"{ROOT}/show/mjpeg?fps=30&quality=50", 5)
    await until(lambda: _state_is(server, "idle"), 30, "idle again")
    generated = len(server.chunks())
    frame = await call(server, "GET", "show/frame?quality=50")
    newest = await server.client.call("GET", "/api/v1/session/frame?quality=50")
    await asyncio.sleep(0.5)  # several chunks' time

    assert no_picture.status == 404
    assert len(server.sessions()) == before + 1
    assert {image.size for _, image in pictures} == {(128, 96)}
    assert len({data for data, _ in pictures}) == 5, "none comes twice"
    assert Image.open(io.BytesIO(frame.body)).size == (128, 96)
    assert [answer.headers["cache-control"] for answer in (frame, newest)] == ["no-store"] * 2
    assert newest.body == frame.body
    assert len(server.chunks()) <= generated + 2, "what was begun may end"


async def _state_is(server: DoubleProcess, state: str) -> bool:
    return bool((await call(server, "GET", "show")).json()["state"] == state)


async def test_scope_s_headless_session_is_watched_by_a_player_that_opens_an_address(
    server: DoubleProcess,
) -> None:
    async def session(path: str, **options: Any) -> Answer:
        return await server.client.call("POST", f"/api/v1/session/{path}", **options)

    none = await server.client.call("GET", "/api/v1/session/output.ts")
    started = await session("start", json_body={"prompts": "a"})
    again = await session("start")
    pictures = await asyncio.to_thread(_play, f"{server.url}/api/v1/session/output.ts", 10)
    by_name = await asyncio.to_thread(_play, f"{server.url}{ROOT}/{started.json()['sessionId']}/output.ts", 3)
    stopped = [await session("stop"), await session("stop")]

    assert [answer.status for answer in (none, started, again, *stopped)] == [404, 200, 409, 200, 200]
    assert (set(started.json()), started.json()["status"]) == ({"status", "sessionId"}, "started")
    assert [answer.json() for answer in stopped] == [{"status": "stopped"}] * 2
    for played in (pictures, by_name):
        times = [time for _, time in played]
        assert {size for size, _ in played} == {(128, 96)}
        assert times == sorted(set(times))
    assert (await server.client.call("GET", ROOT)).json() == {"streams": []}


def _play(url: str, count: int) -> list[tuple[tuple[int, int], float]]:
    """Size and time of the first pictures that a player is sent."""
    with av.open(url, timeout=60) as container:
        pictures = itertools.islice(container.decode(video=0), count)
        return [((picture.width, picture.height), picture.time or 0.0) for picture in pictures]


async def test_a_stream_that_always_runs_generates_for_nobody(server: DoubleProcess) -> None:
    await made(server, name="show", run="always")

    await until(lambda: bool(server.sessions()) and len(server.chunks()) > 3, 30, "chunks")

    assert await _state_is(server, "running")
    await until(lambda: _has_frame(server), 30, "a picture")


async def _has_frame(server: DoubleProcess) -> bool:
    return (await call(server, "GET", "show/frame")).status == 200


async def test_parameters_are_read_and_changed_by_stream_and_listeners_hear_of_it(
    server: DoubleProcess,
) -> None:
    await made(server, name="show")
    events = events_of(server, "show")
    state = await anext(events)

    patched = await call(server, "PATCH", "show/parameters", {"base_seed": 7, "noise_scale": 9})
    posted = await call(server, "POST", "show/parameters", {"paused": True})
    refused = await call(server, "PATCH", "show/parameters", {"noise_scale": 9})
    nothing = await call(server, "PATCH", "show/parameters", {})
    news = [await anext(events), await anext(events)]
    seed = (await call(server, "GET", "show/parameters")).json()["parameters"]["base_seed"]
    paused = (await call(server, "GET", "show")).json()["state"]
    await call(server, "DELETE", "show")
    last = [event async for event in events]

    assert (state["type"], state["streamId"], state["role"]) == ("stream_state", "show", "viewer")
    assert patched.json()["applied_parameters"] == {"base_seed": 7}
    assert patched.json()["errors"][0]["loc"] == ["noise_scale"]
    assert posted.json() == {"status": "ok", "applied_parameters": {"paused": True}, "errors": []}
    assert (refused.status, nothing.status) == (422, 400)
    assert news[0] == {"type": "parameters_updated", "parameters": {"base_seed": 7}}
    assert news[1]["parameters"] == {"paused": True}
    assert seed == 7
    assert paused == "paused"
    assert [event["type"] for event in last] == ["stream_stopped"]


async def test_a_kept_stream_waits_for_another_pipeline_and_goes_on(server: DoubleProcess) -> None:
    await made(server, name="show", parameters={"prompts": "a"})
    async with Peer(server.client, direction="recvonly") as viewer:
        await join(viewer, "show")
        await viewer.wait_frames(3)

        await server.client.call("POST", "/api/v1/pipeline/unload")
        await until(lambda: _state_is(server, "waiting"), 30, "waiting")
        await load(server.client, "longlive", {"height": 64, "width": 128})
        await until(lambda: viewer.frames[-1].height == 64, 30, "pictures of the new size")

        assert not any(message["type"] == "stream_stopped" for message in viewer.messages)
        assert await _state_is(server, "running")


async def test_a_leased_stream_ends_when_nobody_has_looked_for_that_long(server: DoubleProcess) -> None:
    async with Peer(server.client, direction="recvonly") as viewer:
        await viewer.offer_sdp()  # what takes its time is done before
        await made(server, name="show", lease_s=2.0)
        await join(viewer, "show")
        await viewer.wait_frames(1)
        await asyncio.sleep(2.5)  # more than a lease
        watched = (await call(server, "GET", "show")).status

    await until(lambda: _is_gone(server), 30, "the end of the lease")

    assert watched == 200


async def _is_gone(server: DoubleProcess) -> bool:
    return (await call(server, "GET", "show")).status == 404


async def test_the_seat_is_given_over_rest_and_people_are_listed(server: DoubleProcess) -> None:
    await made(server, name="show")
    async with Peer(server.client) as one, Peer(server.client) as two:
        await join(one, "show", "controller", label="desk")
        await join(two, "show", "controller")
        first = (await call(server, "GET", "show")).json()

        given = await call(server, "POST", "show/driver", {"sessionId": two.session_id})
        nobody = await call(server, "POST", "show/driver", {"sessionId": "x"})
        emptied = await call(server, "POST", "show/driver", {"sessionId": None})

        assert first["driver"] == one.session_id
        assert first["people"] == [
            {"sessionId": one.session_id, "label": "desk", "role": "driver"},
            {"sessionId": two.session_id, "label": "browser", "role": "controller"},
        ]
        assert first["viewers"] == 2
        assert {sink["kind"] for sink in first["sinks"]} == {"webrtc"}
        assert given.json()["driver"] == two.session_id
        assert nobody.status == 404
        assert emptied.json()["driver"] is None
        metrics = (await server.client.call("GET", "/metrics")).text.splitlines()
        assert {
            'wanstream_streams{state="idle"} 0.0',
            'wanstream_streams{state="running"} 1.0',
            'wanstream_viewers{protocol="webrtc"} 2.0',
            'wanstream_controls{role="controller"} 2.0',
        } <= set(metrics)


async def test_sources_that_this_server_has_not_are_refused(server: DoubleProcess) -> None:
    await made(server, name="show")

    source = await call(server, "PUT", "show/source", {"kind": "telepathy"})
    none = await call(server, "PUT", "show/source", {"kind": "none"})
    removed = await call(server, "DELETE", "show/source")

    assert source.status == 400
    assert "only file" in source.json()["detail"]
    assert none.json()["source"] == {"kind": "none"}
    assert removed.status == 204


# Who may do what. Of each token, the grants: a row of the table is a request and what it needs.

ADMIN, VIEW = "everything", "only-looking"
REQUESTS = {
    "list": ("GET", "", "view", True),
    "one": ("GET", "/{id}", "view", False),
    "parameters": ("GET", "/{id}/parameters", "view", False),
    "frame": ("GET", "/{id}/frame", "view", False),
    "still of the control": ("GET", "/{id}/control", "view", False),
    "numbers": ("GET", "/{id}/metrics", "view", False),
    "code": ("GET", "/{id}/qr.svg", "view", False),
    "events": ("GET", "/{id}/events", "view", False),
    "mjpeg": ("GET", "/{id}/mjpeg", "view", False),
    "video": ("GET", "/{id}/output.ts", "view", False),
    "patch": ("PATCH", "/{id}/parameters", "drive", False),
    "post": ("POST", "/{id}/parameters", "drive", False),
    "source": ("PUT", "/{id}/source", "drive", False),
    "no source": ("DELETE", "/{id}/source", "drive", False),
    "sink": ("PUT", "/{id}/sinks/ndi", "drive", False),
    "record": ("POST", "/{id}/recordings", "drive", False),
    "stop": ("POST", "/{id}/recordings/stop", "drive", False),
    "mark": ("POST", "/{id}/recordings/mark", "drive", False),
    "replay": ("POST", "/{id}/replay", "drive", False),
    "no replay": ("DELETE", "/{id}/replay", "drive", False),
    "cue": ("POST", "/{id}/cues/none", "drive", False),
    "look": ("POST", "/{id}/looks/none", "drive", False),
    "scope's start": ("POST", "/api/v1/recordings/{id}/start?node_id=1", "drive", False),
    "scope's stop": ("POST", "/api/v1/recordings/{id}/stop?node_id=1", "drive", False),
    "scope's download": ("GET", "/api/v1/recordings/{id}?node_id=1", "drive", False),
    "driver": ("POST", "/{id}/driver", "all", False),
    "publish": ("POST", "/{id}/publications", "all", False),
    "end": ("DELETE", "/{id}", "all", False),  # by those who may not
    "make": ("POST", "", "all", True),
}
BODIES = {
    "patch": {"base_seed": 1},
    "post": {"base_seed": 1},
    "source": {"kind": "none"},
    "sink": {"enabled": False},
    "driver": {"sessionId": None},
    "make": {},
    # Those who may are told that there is something wrong.
    **{key: {"quality": "best"} for key in ("record", "mark", "replay", "publish")},
}
OPENS = {
    "all": {"view", "drive", "all"},
    "drive": {"view", "drive"},
    "view": {"view"},
    "publish": set(),
    None: set(),
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    env = {"WANSTREAM_TOKEN": ADMIN, "WANSTREAM_VIEW_TOKEN": VIEW, "WANSTREAM_MAX_VIEWERS": "1"}
    env["WANSTREAM_MAX_SESSIONS"] = "3"
    env["WANSTREAM_TRUSTED_PROXIES"] = "127.0.0.1"
    process = DoubleProcess(tmp_path_factory.mktemp("guarded"), env)
    yield process
    process.stop()


async def asked(server: DoubleProcess, token: str | None, method: str, path: str, body: Any = None) -> Answer:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return await server.client.call(method, path, json_body=body, headers=headers)


@pytest.fixture
async def private(guarded: DoubleProcess) -> AsyncIterator[dict[str, Any]]:
    """A private stream of the guarded server, and a public one beside it."""
    loaded = {"pipeline_id": "longlive", "load_params": SIZE}
    assert (await asked(guarded, ADMIN, "POST", "/api/v1/pipeline/load", loaded)).status == 200
    await until(lambda: _is_loaded(guarded), 30, "loaded")
    await asked(guarded, ADMIN, "POST", ROOT, {"name": "public"})
    yield (await asked(guarded, ADMIN, "POST", ROOT, {"name": "private", "private": True})).json()
    for stream in (await asked(guarded, ADMIN, "GET", ROOT)).json()["streams"]:
        await asked(guarded, ADMIN, "DELETE", f"{ROOT}/{stream['id']}")


async def test_every_token_opens_what_it_grants_and_no_more(
    guarded: DoubleProcess, private: dict[str, Any]
) -> None:
    tokens = private["tokens"]
    held = {ADMIN: "all", VIEW: "view", None: None, "made-up": None}
    table = [("public", token, grant) for token, grant in held.items()]
    table += [("private", token, None if token == VIEW else grant) for token, grant in held.items()]
    table += [("private", tokens[grant], grant) for grant in ("view", "drive", "publish")]
    table += [("public", tokens[grant], None) for grant in ("view", "drive", "publish")]

    wrong = []
    async with httpx.AsyncClient(base_url=guarded.url, timeout=30) as client:
        for stream_id, token, grant in table:
            for name, (method, path, need, is_global) in REQUESTS.items():
                known = token not in (None, "made-up")
                opens = need in OPENS[grant] or (is_global and known and need == "view")
                if name == "end" and opens:
                    continue
                request = client.build_request(
                    method,
                    path.format(id=stream_id)
                    if path.startswith("/api/")
                    else ROOT + path.format(id=stream_id),
                    json=BODIES.get(name),
                    headers={} if token is None else {"Authorization": f"Bearer {token}"},
                )
                answer = await client.send(request, stream=True)  # some go on without end
                await answer.aclose()
                refusal = 403 if known else 401
                if opens != (answer.status_code not in (401, 403)) or not (
                    opens or answer.status_code == refusal
                ):
                    wrong.append((stream_id, grant, token == VIEW, name, answer.status_code))
                if answer.status_code == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"

    assert wrong == []


async def _is_loaded(server: DoubleProcess) -> bool:
    return bool((await asked(server, ADMIN, "GET", "/api/v1/pipeline/status")).json()["status"] == "loaded")


async def test_viewers_of_a_guarded_server_see_and_do_nothing_else(
    guarded: DoubleProcess, private: dict[str, Any]
) -> None:
    listed = (await asked(guarded, VIEW, "GET", ROOT)).json()["streams"]
    answers = {
        path: (await asked(guarded, VIEW, method, path, {})).status
        for method, path in [
            ("GET", "/"),
            ("GET", "/static/app.js"),
            ("GET", "/api/v1/webrtc/ice-servers"),
            ("POST", "/api/v1/pipeline/load"),
            ("GET", "/api/v1/session/frame"),
            ("POST", "/api/v1/session/parameters"),
            ("POST", "/whip/public"),
        ]
    }

    shown = (await asked(guarded, ADMIN, "GET", f"{ROOT}/private")).json()
    own = (await asked(guarded, private["tokens"]["drive"], "GET", f"{ROOT}/private")).json()

    assert [stream["id"] for stream in listed] == ["public"]
    assert shown["tokens"] == private["tokens"]
    assert "tokens" not in own
    assert list(answers.values()) == [200, 200, 200, 403, 403, 403, 403]


async def test_offers_need_what_their_role_needs_and_viewers_have_a_limit(
    guarded: DoubleProcess, private: dict[str, Any]
) -> None:
    tokens = private["tokens"]
    async with Peer(guarded.client) as one, Peer(guarded.client) as two:
        body = {"sdp": await one.offer_sdp(), "type": "offer"}
        private_view = body | {"streamId": "private"}
        cases = [
            (VIEW, body, 403),
            (VIEW, private_view, 403),
            (VIEW, body | {"streamId": "public", "role": "controller"}, 403),
            (None, private_view, 401),
            (tokens["view"], private_view | {"role": "controller"}, 403),
            (tokens["view"], private_view | {"publish": True}, 403),
            (tokens["publish"], private_view, 403),
            (tokens["view"], private_view, 200),
        ]
        statuses = [
            (await asked(guarded, token, "POST", "/api/v1/webrtc/offer", offer)).status
            for token, offer, _ in cases
        ]
        more = {"sdp": await two.offer_sdp(), "type": "offer", "streamId": "private"}
        full = await asked(guarded, ADMIN, "POST", "/api/v1/webrtc/offer", more)
        mjpeg = await asked(guarded, ADMIN, "GET", f"{ROOT}/private/mjpeg")

    assert statuses == [status for *_, status in cases]
    assert (full.status, mjpeg.status) == (503, 503)
    assert full.json() == {"detail": "Maximum number of viewers (1) of stream private reached"}
    assert full.headers["retry-after"] == "5"


async def test_a_token_in_the_address_opens_pages_and_pictures_and_nothing_else(
    guarded: DoubleProcess, private: dict[str, Any]
) -> None:
    token = private["tokens"]["view"]
    addresses = ["/?token=", f"{ROOT}/private/frame?token=", f"{ROOT}/private?token=", f"{ROOT}?token="]

    statuses = [(await asked(guarded, None, "GET", address + token)).status for address in addresses]

    assert statuses == [200, 404, 401, 401]  # there is no picture yet


async def test_a_private_stream_of_an_open_server_is_closed_to_strangers(server: DoubleProcess) -> None:
    tokens = (await made(server, name="secret", private=True))["tokens"]

    open_to_strangers = [
        (await asked(server, None, method, f"{ROOT}/secret{path}")).status
        for method, path in [("GET", ""), ("GET", "/parameters"), ("GET", "/frame"), ("DELETE", "")]
    ]
    scopes_words = [
        (await asked(server, None, method, f"/api/v1/{path}")).status
        for method, path in [
            ("POST", "recordings/secret/start"),
            ("POST", "recordings/secret/stop"),
            ("GET", "recordings/secret"),
            ("GET", "session/output.ts"),
        ]
    ]
    strangers_list = (await asked(server, None, "GET", ROOT)).json()["streams"]
    everybody = await asked(server, None, "POST", "/api/v1/session/parameters", {"base_seed": 3})
    seed = (await asked(server, tokens["view"], "GET", f"{ROOT}/secret/parameters")).json()["parameters"]
    viewers_delete = (await asked(server, tokens["view"], "DELETE", f"{ROOT}/secret")).status
    owners_delete = (await asked(server, tokens["drive"], "DELETE", f"{ROOT}/secret")).status

    assert open_to_strangers == scopes_words == [401] * 4
    assert strangers_list == []
    assert everybody.status == 200
    assert seed["base_seed"] == 42
    assert (viewers_delete, owners_delete) == (403, 204)


async def test_an_address_that_asks_for_connections_without_end_has_to_wait(guarded: DoubleProcess) -> None:
    def ask(address: str, path: str) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN}", "X-Forwarded-For": address}
        return guarded.client.call("POST", path, json_body={}, headers=headers)

    paths = ["/api/v1/webrtc/offer", "/whip/x", "/whep/x", "/api/v1/whep/x"]
    answers = await asyncio.gather(*(ask("192.0.2.7", path) for path in paths * 50))
    other = await ask("192.0.2.8", paths[0])
    own = await asyncio.gather(*(ask("127.0.0.1", paths[0]) for _ in range(50)))

    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"
    assert other.status == 422
    assert {answer.status for answer in own} == {422}


async def test_no_metric_is_told_twice(server: DoubleProcess) -> None:
    lines = (await server.client.call("GET", "/metrics")).text.splitlines()

    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]

    assert len(names) == len(set(names))
