"""What a Triton server holds: which models answer, and how they get off it again."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Collection, Sequence
from typing import TypeVar

import grpc
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from gateway.serving.interface import ServingError, ServingLost
from gateway.waiting import end, within
from streaming.triton.server_id import PREFIX, server_id

logger = logging.getLogger(__name__)

QUICK_S = 2.0  # calls that answer at once when the server is well
_POLL_S = 0.05
READY, LOADING = "READY", "LOADING"
_GONE = ("", "UNAVAILABLE")
_NOBODY_THERE = "StatusCode.UNAVAILABLE"

T = TypeVar("T")


class NoAnswerError(ServingError):
    """Triton did not answer in time; it may be busy, or hang."""


async def answer_of(call: Awaitable[T], limit_s: float | None = QUICK_S) -> T:
    """The answer to a gRPC call.

    Raises ServingLost when the connection is broken or was closed, NoAnswerError when none comes within
    `limit_s`, and InferenceServerException when Triton refuses.
    """
    # Not awaited directly: to grpc a channel that is closed meanwhile is a cancellation of the caller.
    asking = asyncio.ensure_future(call)
    try:
        answered, _ = await asyncio.wait({asking}, timeout=limit_s)
    finally:
        await end(asking)
    if not answered:
        raise NoAnswerError(f"Triton does not answer within {limit_s:.0f} s")
    if asking.cancelled():
        raise ServingLost("The connection to Triton was closed.")
    error = asking.exception()
    if isinstance(error, (grpc.RpcError, grpc.aio.UsageError)):
        raise ServingLost("The connection to Triton broke.") from error
    if isinstance(error, InferenceServerException) and error.status() == _NOBODY_THERE:
        raise ServingLost(f"Triton cannot be reached ({error.message()}).") from error
    return asking.result()


async def check_version(client: InferenceServerClient, url: str) -> None:
    """Raises ServingError when the server tells another version than ours, and as `answer_of`."""
    theirs = (await answer_of(client.get_server_metadata(as_json=True)))["name"]
    if theirs.startswith(PREFIX) and theirs != server_id():
        raise ServingError(
            f"Triton at {url} runs the models of {theirs}, and this gateway is {server_id()}: they would "
            "misunderstand each other. Build and start both from one checkout: docker compose up -d --build."
        )


async def model_states(client: InferenceServerClient) -> dict[str, str]:
    """State of every model by name: READY, LOADING, UNLOADING, UNAVAILABLE, or empty: never loaded.

    Raises as `answer_of`.
    """
    index = await answer_of(client.get_model_repository_index(as_json=True))
    return {model["name"]: model.get("state", "") for model in index.get("models", [])}


async def why_not_served(client: InferenceServerClient, names: Sequence[str]) -> str | None:
    """Why the server cannot answer for these models, or None. Raises as `answer_of`.

    Until release 25.10 Triton calls a model ready whose process is dead.
    """
    states = await model_states(client)
    for name in names:
        if states.get(name) != READY:
            return f"model '{name}' is not loaded any more; the server was restarted, or somebody unloaded it"
    for name in names:
        if not await answer_of(client.is_model_ready(name)):
            return f"model '{name}' is not ready any more; its process may have died"
    return None


async def unload_model(client: InferenceServerClient, name: str) -> None:
    """Unload a model and wait until it is gone. Raises as `answer_of`.

    One that is still being loaded is loaded to the end first.
    """
    await answer_of(client.unload_model(name), None)
    await _gone(client, {name})


async def unload_leftovers(
    client: InferenceServerClient, names: Collection[str], *, dead: Collection[str], limit_s: float
) -> None:
    """Unload models that nobody uses any more and wait until they are gone, at most `limit_s`.

    dead: models without a process, whose unloading may never end; Triton can load them anew all the same.
    Raises as `answer_of`.
    """
    for name in names:
        # Refused or slow, it does not keep the others; the loop below sees what came of it.
        with contextlib.suppress(NoAnswerError, InferenceServerException):
            await answer_of(client.unload_model(name))
    try:
        await within(_gone(client, set(names) - set(dead)), limit_s)
    except asyncio.TimeoutError:
        logger.warning("Triton does not finish unloading %s within %.0f s", ", ".join(names), limit_s)


async def answered_requests(client: InferenceServerClient, names: Collection[str]) -> dict[str, int]:
    """How many requests each of these loaded models has answered. Raises as `answer_of`."""
    counts = {}
    for name in names:
        found = await answer_of(client.get_inference_statistics(name, as_json=True))
        counts[name] = sum(int(model.get("inference_count", 0)) for model in found.get("model_stats", []))
    return counts


async def _gone(client: InferenceServerClient, names: Collection[str]) -> None:
    while True:
        states = await model_states(client)
        if all(states.get(name, "") in _GONE for name in names):
            return
        await asyncio.sleep(_POLL_S)
