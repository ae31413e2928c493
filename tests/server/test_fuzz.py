"""Half a minute each of random requests and random messages; `python -m tests.fuzz` goes on for longer."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
import schemathesis

from tests.fuzz.server import fuzz_beside_stream, fuzz_messages, start_server
from tests.server.double_process import DoubleProcess

SECONDS = 24.0
SEED = 1

ROUTES = {  # api.md 2, without the document itself
    "GET /",
    "GET /docs",
    "GET /health",
    "GET /api/v1/hardware/info",
    "POST /api/v1/pipeline/load",
    "GET /api/v1/pipeline/status",
    "POST /api/v1/pipeline/unload",
    "GET /api/v1/pipelines/schemas",
    "GET /api/v1/models/status",
    "POST /api/v1/models/download",
    "GET /api/v1/lora/list",
    "GET /api/v1/loras",
    "POST /api/v1/loras",
    "DELETE /api/v1/loras/{name}",
    "POST /api/v1/lora/download",
    "PUT /api/v1/lora/{filename}/provenance",
    "GET /api/v1/assets",
    "POST /api/v1/assets",
    "GET /api/v1/assets/{name}",
    "GET /api/v1/webrtc/ice-servers",
    "POST /api/v1/webrtc/offer",
    "PATCH /api/v1/webrtc/offer/{session_id}",
    "DELETE /api/v1/webrtc/offer/{session_id}",
    "GET /api/v1/logs/current",
    "GET /api/v1/logs/tail",
    "GET /api/v1/session/metrics",
    "GET /api/v1/session/frame",
    "GET /api/v1/session/parameters",
    "POST /api/v1/session/parameters",
}
WITHOUT_INPUT = {
    "/api/v1/pipeline/unload",
    "/api/v1/recordings/{stream_id}/start",
    "/api/v1/recordings/{stream_id}/stop",
    "/api/v1/session/stop",
    "/api/v1/streams/{stream_id}/recordings/stop",
    "/api/v1/tempo/disable",
    "/api/v1/tempo/tap",
}


@pytest_asyncio.fixture
async def fuzzed(tmp_path: Path) -> AsyncIterator[DoubleProcess]:
    """A server of its own, of which nothing may be left."""
    server = await start_server(tmp_path)
    yield server
    server.stop()


async def test_document_is_valid_and_describes_every_route(double_server: DoubleProcess) -> None:
    document = (await double_server.client.call("GET", "/openapi.json")).json()

    schemathesis.openapi.from_dict(document).validate()
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) >= ROUTES
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(ids) == len(set(ids))
    for name, operation in operations.items():
        assert operation["summary"], name
        assert all(answer["description"] for answer in operation["responses"].values()), name
        success = next(answer for code, answer in operation["responses"].items() if code < "300")
        assert "content" in success or "204" in operation["responses"], name
        method, path = name.split()
        if method in ("POST", "PUT", "PATCH") and path not in WITHOUT_INPUT:
            assert operation["requestBody"]["required"], name
    for kind in ("whip", "whep"):
        offer = operations[f"POST /api/v1/{kind}/{{stream_id}}"]
        assert "application/sdp" in offer["requestBody"]["content"]
        assert {"201", "409", "422", "503"} <= set(offer["responses"])
        session = f"/api/v1/{kind}/{{stream_id}}/{{secret}}"
        assert {f"PATCH {session}", f"DELETE {session}"} <= set(operations)
    assert not any(" /whip" in name or " /whep" in name for name in operations), "short forms"


async def test_random_requests_get_documented_answers_beside_a_stream(fuzzed: DoubleProcess) -> None:
    await fuzz_beside_stream(fuzzed, SECONDS, SEED)


async def test_stream_survives_random_messages(fuzzed: DoubleProcess) -> None:
    assert await fuzz_messages(fuzzed, SECONDS, SEED) > 50
