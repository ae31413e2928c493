"""Calls of the HTTP API that many tests need."""

from typing import Any

from tests.server.client import HttpClient
from tests.server.peer import until


async def load(
    client: HttpClient, pipeline: str, params: dict[str, Any] | None = None, within_s: float = 15.0
) -> None:
    """Load a pipeline and wait until it is there."""
    body = {"pipeline_id": pipeline, "load_params": params}
    answer = await client.call("POST", "/api/v1/pipeline/load", json_body=body)
    assert answer.status == 200, f"load refused: {answer.status} {answer.text}"
    await wait_status(client, "loaded", within_s)


async def wait_status(client: HttpClient, wanted: str, within_s: float = 30.0) -> dict[str, Any]:
    """Wait for a pipeline status and return the whole answer."""
    status: dict[str, Any] = {}

    async def reached() -> bool:
        status.update(await pipeline_status(client))
        return status["status"] in (wanted, "error")

    await until(reached, within_s, f"pipeline status {wanted}")
    assert status["status"] == wanted, status["error"]
    return status


async def pipeline_status(client: HttpClient) -> dict[str, Any]:
    return dict((await client.call("GET", "/api/v1/pipeline/status")).json())


async def session_parameters(client: HttpClient) -> dict[str, Any]:
    """Effective parameters of the newest session."""
    return dict((await client.call("GET", "/api/v1/session/parameters")).json()["parameters"])


async def sessions(client: HttpClient) -> dict[str, dict[str, Any]]:
    """Metrics of all sessions by id."""
    return dict((await client.call("GET", "/api/v1/session/metrics")).json()["sessions"])
