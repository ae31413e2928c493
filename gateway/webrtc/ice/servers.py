"""The ICE servers of browsers and of our own peer connections (api.md 8.1)."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Final, Literal

from aiortc import RTCConfiguration, RTCIceServer

from gateway.config import Config, Secrets
from gateway.webrtc.ice import stun_probe
from gateway.webrtc.ice.turn_credentials import (
    Credentials,
    IceServer,
    TurnError,
    TurnSource,
    TurnUrls,
    choose_source,
    from_secret,
    read_servers,
    server_urls,
)
from streaming.errors import WanstreamError

logger = logging.getLogger(__name__)

STUN_SERVER: Final[IceServer] = {
    "urls": ["stun:stun.l.google.com:19302"],
    "username": None,
    "credential": None,
}

_SHOWN: Final = ("urls", "username", "credential")
_RENEW_AT: Final = 0.8  # of the time to live
_RETRY_S: Final = 30.0  # after a service refused or failed
_PROBE_EVERY_S: Final = 60.0


class IceServers:
    """Chooses ICE servers once, keeps their credentials fresh, and knows which of them answer.

    `WANSTREAM_ICE_SERVERS` wins, and is taken as it is; then come Cloudflare through a Hugging Face token,
    Cloudflare itself, Twilio, and a public STUN server, which also stands in while a service fails. TURN
    servers with which we share a secret take the place of the services, and come after an explicit list.
    Entries with `clientOnly` are for browsers and not for our own peer connections.
    """

    def __init__(
        self,
        secrets: Secrets,
        explicit: Sequence[IceServer] | None = None,
        urls: TurnUrls | None = None,
        own: TurnSource | None = None,
        policy: Literal["all", "relay"] = "all",
    ) -> None:
        """explicit: use these and ask no service. own: of TURN servers that no service stands before."""
        self.policy = policy
        self._explicit = explicit
        asked = None if explicit is not None else choose_source(secrets, urls or TurnUrls())
        self._source = own or asked
        self._fallback = [STUN_SERVER] if explicit is None else list(explicit)
        self._credentials: Credentials | None = None
        self._renew_at = float("-inf")  # monotonic seconds, like the next
        self._expires_at = float("-inf")
        self._renewing = asyncio.Lock()
        self._reachable: frozenset[str] = frozenset()
        self._probed = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, config: Config) -> "IceServers":
        """Raises WanstreamError when the settings cannot be used."""
        explicit = None if config.ice_servers is None else _read_explicit(config.ice_servers)
        found = cls(
            config.secrets,
            explicit,
            TurnUrls(huggingface=config.turn_credentials_url),
            _own_source(config),
            "relay" if config.relay_only else "all",
        )
        if config.relay_only and found._source is None and not any(map(_is_relay, explicit or ())):
            raise WanstreamError(
                "WANSTREAM_ICE_TRANSPORT_POLICY=relay lets viewers use TURN servers only, and there is none: "
                "set WANSTREAM_TURN_SECRET and WANSTREAM_TURN_URLS, or WANSTREAM_ICE_SERVERS."
            )
        return found

    def start(self) -> None:
        """Fetch credentials and look which servers answer, now and again, in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_fresh(), name="ice-servers")

    async def close(self) -> None:
        """End the background work. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def get(self) -> list[IceServer]:
        """The list for a browser: objects with `urls`, `username`, `credential`. Never raises.

        Asks the credential service when the credentials have reached 80 % of their time to live.
        """
        await self._renew()
        return [{key: server[key] for key in _SHOWN} for server in deepcopy(self._current())]

    def for_server(self) -> RTCConfiguration:
        """Configuration of a peer connection of our own.

        Only servers that answered when last asked: one that does not delays every answer to an offer by 5 s.
        """
        return to_rtc(self._for_us(), self._reachable)

    async def probe(self) -> None:
        """Ask every server that we use ourselves whether it is there."""
        urls = {url for server in self._for_us() for url in server_urls(server)}
        reached = await asyncio.gather(*(stun_probe.answers(url) for url in urls))
        reachable = frozenset(url for url, answered in zip(urls, reached, strict=True) if answered)
        if reachable != self._reachable or not self._probed:
            logger.info("%d of %d STUN and TURN addresses answer", len(reachable), len(urls))
        self._reachable, self._probed = reachable, True

    def _for_us(self) -> list[IceServer]:
        return [server for server in self._current() if not server.get("clientOnly")]

    def _current(self) -> list[IceServer]:
        if self._credentials is not None and time.monotonic() < self._expires_at:
            return self._credentials.servers
        return self._fallback

    async def _renew(self) -> None:
        if self._source is None or time.monotonic() < self._renew_at:
            return
        async with self._renewing:
            now = time.monotonic()
            if now < self._renew_at:  # another caller was faster
                return
            try:
                found = await self._source.fetch()
            except TurnError as error:
                self._renew_at = now + _RETRY_S
                logger.warning("No TURN credentials from %s: %s", self._source.name, error)
                return
            servers = (
                _with_stun(found.servers) if self._explicit is None else [*self._explicit, *found.servers]
            )
            self._credentials = Credentials(servers, found.ttl_s)
            self._renew_at = now + _RENEW_AT * found.ttl_s
            self._expires_at = now + found.ttl_s
            logger.info("TURN credentials from %s, valid for %.0f s", self._source.name, found.ttl_s)

    async def _keep_fresh(self) -> None:
        while True:
            try:
                await self._renew()
                await self.probe()
            except Exception:  # task boundary: without fresh credentials the fallback serves
                logger.exception("Refreshing the ICE servers failed")
            pause_s = _PROBE_EVERY_S
            if self._source is not None:
                pause_s = min(pause_s, max(1.0, self._renew_at - time.monotonic()))
            await asyncio.sleep(pause_s)


def _own_source(config: Config) -> TurnSource | None:
    secret, urls = config.secrets.turn_secret, config.turn_urls
    if secret is None and not urls:
        return None
    if secret is None or not urls:
        raise WanstreamError(
            "WANSTREAM_TURN_SECRET and WANSTREAM_TURN_URLS belong together: the secret that the TURN servers "
            "know, and a comma list of their URLs, such as turn:turn.example.org:3478."
        )
    usable = read_servers({"urls": list(urls)})
    if not usable or server_urls(usable[0]) != list(urls) or not _is_relay(usable[0]):
        raise WanstreamError(
            "WANSTREAM_TURN_URLS must be a comma list of turn: and turns: URLs, such as "
            "turn:turn.example.org:3478,turn:turn.example.org:3478?transport=tcp."
        )
    return from_secret(secret, urls, config.turn_ttl_s)


def _is_relay(server: IceServer) -> bool:
    return any(url.startswith(("turn:", "turns:")) for url in server_urls(server))


def to_rtc(servers: Sequence[IceServer], reachable: Collection[str]) -> RTCConfiguration:
    """aiortc's form of `servers`, with only those URLs that are in `reachable`."""
    entries = []
    for server in servers:
        urls = [url for url in server_urls(server) if url in reachable]
        if urls:
            entries.append(RTCIceServer(urls, server["username"], server["credential"]))
    return RTCConfiguration(iceServers=entries)


def _with_stun(servers: list[IceServer]) -> list[IceServer]:
    has_stun = any(url.startswith("stun:") for server in servers for url in server_urls(server))
    return servers if has_stun else [*servers, STUN_SERVER]


def _read_explicit(text: str) -> list[IceServer]:
    advice = (
        'WANSTREAM_ICE_SERVERS must be a JSON list such as [{"urls": "turn:turn.example.org:3478", '
        '"username": "u", "credential": "c"}]'
    )
    try:
        value = json.loads(text)
    except ValueError as error:
        raise WanstreamError(f"{advice}; it is not JSON.") from error
    entries = [value] if isinstance(value, dict) else value
    servers = read_servers(entries)
    if not isinstance(entries, list) or len(servers) != len(entries):
        raise WanstreamError(f"{advice}; an entry has no usable 'urls' (stun:, stuns:, turn: or turns:).")
    return servers
