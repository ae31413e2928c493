"""Bad input of all kinds beside a healthy stream: it is refused, and the stream does not notice."""

import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import pytest_asyncio

from tests.server.camera import NumberedCamera
from tests.server.client import Answer
from tests.server.gateway_calls import load, pipeline_status, session_parameters
from tests.server.hostile_messages import MESSAGES
from tests.server.hostile_requests import LOAD, REQUESTS, Request
from tests.server.peer import Peer, longest_gap, numbers_of, until
from tests.server.processes import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONGEST_GAP_S = 30.0  # of a machine that has other work; a stream that was hit does not come back at all


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def healthy(server: ServerProcess) -> AsyncIterator[Peer]:
    """A passthrough stream of numbered frames on the real server, for all tests of this module."""
    await load(server.client, "passthrough")
    async with Peer(server.client, source=NumberedCamera()) as peer:
        await peer.connect({"input_mode": "video"})
        await peer.wait_frames(30)
        yield peer


@contextmanager
def undisturbed(peer: Peer) -> Iterator[None]:
    """Asserts that the numbered frames go on meanwhile, in order and without a long gap."""
    first = len(peer.frames) - 1
    yield
    frames = peer.frames[first:]
    assert longest_gap(frames, frames[0].at, time.monotonic()) < LONGEST_GAP_S
    # A loaded machine loses packets, and a picture with them.
    assert numbers_of([frame for frame in frames if frame.number is not None])


def assert_says_why(answer: Answer) -> None:
    """The error body of api.md 1: one key, a sentence or a list of problems."""
    body = answer.json()
    assert list(body) == ["detail"]
    assert body["detail"]
    assert isinstance(body["detail"], str | list)
    if isinstance(body["detail"], list):
        assert answer.status == 422
        assert all(isinstance(problem["msg"], str) and problem["msg"] for problem in body["detail"])
        assert all(isinstance(problem["type"], str) for problem in body["detail"])
        assert all(isinstance(problem["loc"], list) for problem in body["detail"])


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
async def test_malformed_request_is_refused(request_: Request, server: ServerProcess, healthy: Peer) -> None:
    path = request_.path.replace("{session}", str(healthy.session_id))

    with undisturbed(healthy):
        answer = await server.client.call(request_.method, path, **request_.options)
        await healthy.wait_frames(2, LONGEST_GAP_S)

    assert answer.status in request_.statuses, answer.text[:500]
    assert_says_why(answer)
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("name", MESSAGES)
async def test_malformed_message_is_reported(name: str, healthy: Peer) -> None:
    since = len(healthy.messages)

    with undisturbed(healthy):
        healthy.send(MESSAGES[name])
        message = await healthy.wait_message("parameter_error", LONGEST_GAP_S, since=since)
        await healthy.wait_frames(2, LONGEST_GAP_S)

    assert message["errors"]
    assert all(error["msg"] and error["type"] for error in message["errors"])
    assert all(isinstance(error["loc"], list) for error in message["errors"])


@pytest.mark.parametrize(
    "text",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /api/v1/pipeline/load HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/pipeline/load HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /api/v1/pipeline/load HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 1000,
    ],
    ids=lambda text: repr(text[:60]),
)
async def test_what_is_not_http_ends_its_own_connection_only(
    text: bytes, server: ServerProcess, healthy: Peer
) -> None:
    with undisturbed(healthy):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            first_line = connection.makefile("rb").readline()
        await healthy.wait_frames(2, LONGEST_GAP_S)

    assert first_line == b"" or first_line.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))


async def test_body_that_never_ends_is_cut_off(server: ServerProcess, healthy: Peer) -> None:
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"

    with undisturbed(healthy):
        answer = await server.client.call(
            "POST",
            LOAD,
            body=chunk * 40,
            headers={"Content-Type": "application/json", "Transfer-Encoding": "chunked"},
        )
        await healthy.wait_frames(2, LONGEST_GAP_S)

    assert answer.status == 413
    assert_says_why(answer)


async def test_flood_of_messages_does_not_block_and_the_last_value_wins(
    server: ServerProcess, healthy: Peer
) -> None:
    async def last_value_applies() -> bool:
        parameters = await session_parameters(server.client)
        return parameters["noise_scale"] == 0.987 and parameters["manage_cache"] is True

    with undisturbed(healthy):
        for i in range(499):
            healthy.send({"noise_scale": i / 1000, "manage_cache": i % 2 == 0})
        healthy.send({"noise_scale": 0.987})
        answer = await server.client.call("GET", "/health", timeout_s=LONGEST_GAP_S)
        await until(last_value_applies, 30, "the last values apply")
        await healthy.wait_frames(2, LONGEST_GAP_S)

    assert answer.status == 200


async def test_flood_of_malformed_messages_is_answered_one_by_one(healthy: Peer) -> None:
    flood = [text for text in MESSAGES.values() if len(text) < 5000] * 5
    since = len(healthy.messages)

    with undisturbed(healthy):
        for text in flood:
            healthy.send(text)
        await until(lambda: len(healthy.messages) >= since + len(flood), 30, "an answer to each message")
        await healthy.wait_frames(2, LONGEST_GAP_S)

    assert {message["type"] for message in healthy.messages[since:]} == {"parameter_error"}


async def test_many_connections_that_say_nothing_do_not_block(server: ServerProcess, healthy: Peer) -> None:
    with undisturbed(healthy):
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(100)]
        answer = await server.client.call("GET", "/api/v1/pipeline/status", timeout_s=LONGEST_GAP_S)
        await healthy.wait_frames(2, LONGEST_GAP_S)
        for connection in silent:
            connection.close()

    assert answer.json()["status"] == "loaded"


async def test_the_pipeline_is_still_loaded(server: ServerProcess, healthy: Peer) -> None:
    status = await pipeline_status(server.client)

    assert (status["status"], status["pipeline_id"], status["error"]) == ("loaded", "passthrough", None)
    assert healthy.pc.connectionState == "connected"


async def test_there_are_enough_of_both_kinds() -> None:
    assert len(REQUESTS) >= 60
    assert len(MESSAGES) >= 60
