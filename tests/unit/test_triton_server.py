"""The task that keeps Triton alive, while the machine refuses what it needs."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from tritonclient.grpc.aio import InferenceServerClient

from gateway.embedded.server import EmbeddedTriton, EmbeddedTritonError, model_repository
from gateway.serving.interface import ServingError, ServingLost
from gateway.triton.models import NoAnswerError, answer_of
from gateway.triton.server import TritonServer
from tests.server.peer import until


class Unlucky(EmbeddedTriton):
    """Cannot be started as often as there are `errors`; then it can."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__([model_repository()])
        self.errors = list(errors)
        self.stop_errors: list[Exception] = []
        self.starts = 0
        self._runs = False

    @property
    def running(self) -> bool:
        return self._runs

    @property
    def grpc_url(self) -> str:
        return "127.0.0.1:9"

    async def start(self) -> None:
        self.starts += 1
        if self.errors:
            raise self.errors.pop(0)
        self._runs = True

    async def stop(self, timeout_s: float = 0.0) -> int | None:
        self._runs = False
        if self.stop_errors:
            raise self.stop_errors.pop(0)
        return None


Keep = Callable[[Unlucky], TritonServer]


@pytest.fixture
async def keep() -> AsyncIterator[Keep]:
    """Begins to keep a server; ends with the test."""
    kept: list[TritonServer] = []

    async def nothing(client: object) -> None: ...

    def begin(embedded: Unlucky) -> TritonServer:
        server = TritonServer(None, embedded, on_lost=lambda text: None, prepare=nothing, look=nothing)
        server.start()
        kept.append(server)
        return server

    yield begin
    for server in kept:
        await server.close()


async def up(server: TritonServer) -> None:
    await until(lambda: server.client is not None, 30, "the server is there")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError(),
        RuntimeError("something nobody thought of"),
        EmbeddedTritonError("The embedded Triton server did not start."),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_server_that_cannot_be_started_is_tried_again(
    keep: Keep, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    embedded = Unlucky(error)
    server = keep(embedded)

    await up(server)

    assert embedded.starts == 2
    assert server.problem is None
    assert str(error) in caplog.text
    assert isinstance(error, EmbeddedTritonError) or type(error).__name__ in caplog.text


async def test_whoever_waits_for_the_server_is_told_why_there_is_none(keep: Keep) -> None:
    server = keep(Unlucky(*[OSError(errno.ENOSPC, "No space left on device")] * 5))

    with pytest.raises(ServingError, match="No space left on device"):
        await asyncio.wait_for(server.connected(lambda text: None), 30)


@pytest.mark.parametrize("how", ["closed", "refused", "silent"])
async def test_a_call_that_has_no_answer_says_why_and_is_no_cancellation(how: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if how == "silent":
            silent.listen()
        client = InferenceServerClient(f"127.0.0.1:{silent.getsockname()[1]}")
        if how == "closed":
            await client.close()

        with pytest.raises(NoAnswerError if how == "silent" else ServingLost):
            await answer_of(client.is_server_ready(), 0.3 if how == "silent" else 10)

        await client.close()


async def test_a_call_ends_when_its_channel_is_closed_meanwhile() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = InferenceServerClient(f"127.0.0.1:{silent.getsockname()[1]}")
        asking = asyncio.create_task(answer_of(client.is_server_ready(), 30))
        await asyncio.sleep(0.05)

        await client.close()

        with pytest.raises(ServingLost):
            await asking


async def test_a_server_whose_remains_cannot_be_removed_is_started_again(keep: Keep) -> None:
    embedded = Unlucky()
    server = keep(embedded)
    await up(server)

    embedded.stop_errors.append(OSError(errno.EBUSY, "Device or resource busy"))
    server.lose("It died.")
    await up(server)

    assert embedded.starts == 2
