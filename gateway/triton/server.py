"""The Triton server behind the gateway: found or started, watched, and found or started again."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import grpc
from tritonclient.grpc import KeepAliveOptions
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from gateway.embedded.server import EmbeddedTriton
from gateway.proxies import grpc_proxy_allowed
from gateway.serving.interface import ServingError
from gateway.triton.models import NoAnswerError, answer_of
from gateway.waiting import end, within
from streaming.errors import WanstreamError

logger = logging.getLogger(__name__)

_WATCH_S = 2.0  # between two looks at what the server holds
_SILENT_S = 15.0  # a server that is only busy answers before
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_STABLE_S = 30.0  # one that ran for so long is started again at once
_STOP_S = 3.0
_CLOSE_S = 1.0
_WAIT_S = 1.0
_KEEP_ALIVE = KeepAliveOptions(
    keepalive_time_ms=20_000, keepalive_timeout_ms=10_000, keepalive_permit_without_calls=True
)

Look = Callable[[InferenceServerClient], Awaitable[None]]


class TritonServer:
    """The connection to one Triton: an embedded one that is started again when it dies, or an external one.

    Whoever uses it finds a client, or none while the server is away. `on_lost` is told of each end of a
    connection.
    """

    def __init__(
        self,
        external_url: str | None,
        embedded: EmbeddedTriton | None,
        *,
        on_lost: Callable[[str], None],
        prepare: Look,
        look: Look,
    ) -> None:
        """Give one of external_url, host:port of gRPC, and embedded.

        on_lost(text): called on the event loop, once for a connection. prepare: before a new connection is
        used. look: every few seconds; it calls `lose` if something is wrong. Both raise as `answer_of`.
        """
        self._external_url = external_url
        self.embedded = embedded
        self._on_lost = on_lost
        self._prepare, self._look = prepare, look
        self._client: InferenceServerClient | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self.problem: str | None = None  # why there is no server now; None: there is one, or it is too early
        if embedded is not None:
            embedded.on_exit = lambda text: self.lose("The Triton server died and is being restarted.")

    @property
    def url(self) -> str:
        """Where it is, for people."""
        if self._external_url is not None:
            return self._external_url
        assert self.embedded is not None
        return self.embedded.grpc_url if self.embedded.running else "embedded"

    @property
    def client(self) -> InferenceServerClient | None:
        """None while the server is away."""
        return self._client if self._up.is_set() else None

    def start(self) -> None:
        """Begin to start or to look for the server, in the background."""
        self._keeper = asyncio.create_task(self._keep_running(), name="triton-keeper")

    async def is_ready(self) -> bool:
        """Whether the server answers now; quick, never raises."""
        return self.client is not None and await self._answers()

    async def connected(self, on_wait: Callable[[str], None]) -> InferenceServerClient:
        """The client, as soon as there is a server.

        on_wait(text): told why it takes time. Raises ServingError when an embedded server cannot be started.
        """
        told = None
        while (client := self.client) is None:
            if self.problem is not None and self.embedded is not None:
                raise ServingError(self.problem)
            if self.problem not in (None, told):
                told = self.problem
                on_wait(f"Waiting for Triton: {told}")
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._up.wait(), _WAIT_S / 10)
        return client

    def lose(self, text: str) -> None:
        """Give up the connection: the server is dead, or does not hold what it should. Does nothing twice.

        An embedded server is stopped.
        """
        if self._up.is_set():
            text = f"{text} Load the pipeline again."
            logger.error("%s", text)
            self._up.clear()
            self._down.set()
            self._on_lost(text)

    def restart(self) -> None:
        """Start an embedded server anew although nothing is loaded that could be lost."""
        self._up.clear()
        self._down.set()

    async def disconnect(self) -> None:
        """Stop keeping the server; the client stays for those who have something to say at the end."""
        if self._keeper is not None:
            await end(self._keeper)

    async def close(self) -> None:
        """Disconnect, and stop an embedded server. Idempotent."""
        await self.disconnect()
        await self._hang_up()
        if self.embedded is not None:
            await self.embedded.stop(timeout_s=_STOP_S)

    async def _keep_running(self) -> None:
        """Start or find the server, and again after it died; with growing pauses while that fails."""
        attempt = 0
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            try:
                await self._bring_up()
                self.problem = None
                self._down.clear()
                self._up.set()
                await self._watch()
            except Exception as error:  # task boundary: without this task there never is a server again
                self._note(error)
            self._up.clear()
            await self._take_down()
            attempt = 0 if now() - began > _STABLE_S else attempt + 1
            if attempt > 1:
                await asyncio.sleep(_BACKOFF_S[min(attempt - 2, len(_BACKOFF_S) - 1)])

    def _note(self, error: Exception) -> None:
        """Log what went wrong, unless it did before, and keep it for those who ask."""
        text = str(error)
        if not isinstance(error, WanstreamError):
            text = f"Triton cannot be used ({type(error).__name__}: {error}); it is tried again."
        if text != self.problem:
            unexpected = None if isinstance(error, WanstreamError) else error
            logger.error("%s", text, exc_info=unexpected)
        self.problem = text

    async def _bring_up(self) -> None:
        if self.embedded is not None:
            if not self.embedded.running:
                await self.embedded.start()
            self._client = _client(self.embedded.grpc_url, KeepAliveOptions())
            return
        assert self._external_url is not None
        self._client = _client(self._external_url, _KEEP_ALIVE)
        if not await self._answers():
            raise ServingError(
                f"Triton at {self._external_url} does not answer. Check --triton-url (host:port of its gRPC "
                "endpoint) and that the server runs with --model-control-mode=explicit."
            )
        await self._prepare(self._client)
        logger.info("Connected to Triton at %s", self._external_url)

    async def _watch(self) -> None:
        """Look at the server every few seconds until it is lost."""
        client = self._client
        assert client is not None
        now = asyncio.get_running_loop().time
        answered = now()
        while not self._down.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._down.wait(), _WATCH_S)
                return
            try:
                await self._look(client)
                answered = now()
            except NoAnswerError:
                if now() - answered > _SILENT_S:
                    self.lose(f"Triton at {self.url} does not answer any more.")
            except (ServingError, InferenceServerException) as error:
                self.lose(f"Triton at {self.url} is gone: {error}")

    async def _answers(self) -> bool:
        client = self._client
        if client is None:
            return False
        try:
            return bool(await answer_of(client.is_server_ready()))
        except (ServingError, InferenceServerException):
            return False

    async def _take_down(self) -> None:
        try:
            await self._hang_up()
            if self.embedded is not None:
                await self.embedded.stop(timeout_s=0)
        except Exception as error:  # as above
            self._note(error)

    async def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(grpc.RpcError, InferenceServerException, asyncio.TimeoutError):
                await within(client.close(), _CLOSE_S)


def _client(url: str, keep_alive: KeepAliveOptions) -> InferenceServerClient:
    """A client of HOST:PORT that looks for a proxy only where one was meant for it."""
    options = {
        "grpc.max_send_message_length": -1,
        "grpc.max_receive_message_length": -1,
        "grpc.keepalive_time_ms": keep_alive.keepalive_time_ms,
        "grpc.keepalive_timeout_ms": keep_alive.keepalive_timeout_ms,
        "grpc.keepalive_permit_without_calls": int(keep_alive.keepalive_permit_without_calls),
        "grpc.http2.max_pings_without_data": keep_alive.http2_max_pings_without_data,
        "grpc.enable_http_proxy": int(grpc_proxy_allowed(url)),
    }
    return InferenceServerClient(url, channel_args=list(options.items()))
