"""Short-lived TURN credentials: from services that hand them out (api.md 8.1), or from a shared secret."""

import base64
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
from aiortc.rtcicetransport import parse_stun_turn_uri

from gateway.config import Secrets
from gateway.proxies import OutsideTransport, ProxyFailed
from streaming.errors import WanstreamError

# urls: str or list of str, username: str or None, credential: str or None; clientOnly: True, or not there
IceServer = dict[str, Any]

_REQUEST_TIMEOUT_S: Final = 5.0
_TTL_S: Final = 600  # asked for, and assumed where the answer does not tell another


class TurnError(WanstreamError):
    """No usable answer from a credential service. The text holds no secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """ICE servers in the form that browsers take, and for how long they hold."""

    servers: list[IceServer]
    ttl_s: float


@dataclass(frozen=True, slots=True)
class TurnUrls:
    """Where the credential services are."""

    huggingface: str = "https://turn.fastrtc.org/credentials"
    cloudflare: str = "https://rtc.live.cloudflare.com/v1/turn/keys"
    twilio: str = "https://api.twilio.com/2010-04-01/Accounts"


@dataclass(frozen=True, slots=True)
class TurnSource:
    """A credential service that the given secrets open. fetch raises TurnError."""

    name: str
    fetch: Callable[[], Awaitable[Credentials]]


def choose_source(secrets: Secrets, urls: TurnUrls) -> TurnSource | None:
    """The best service for which there are secrets: Hugging Face, Cloudflare, Twilio; None: no secrets."""
    if secrets.hf_token:
        return TurnSource("Cloudflare (Hugging Face token)", lambda: _from_huggingface(secrets, urls))
    if secrets.cloudflare_key_id and secrets.cloudflare_api_token:
        return TurnSource("Cloudflare", lambda: _from_cloudflare(secrets, urls))
    if secrets.twilio_account_sid and secrets.twilio_auth_token:
        return TurnSource("Twilio", lambda: _from_twilio(secrets, urls))
    return None


def from_secret(secret: str, urls: Sequence[str], ttl_s: float) -> TurnSource:
    """Credentials that a TURN server with the same secret accepts, for viewers only.

    The user name is the time of expiry and a name, the password its HMAC ("TURN REST API", coturn's
    `use-auth-secret`, draft-uberti-behave-turn-rest-00).
    """

    async def fetch() -> Credentials:
        username = f"{int(time.time() + ttl_s)}:viewer"
        digest = hmac.digest(secret.encode(), username.encode(), "sha1")
        server = {"urls": list(urls), "username": username, "credential": base64.b64encode(digest).decode()}
        return Credentials([server | {"clientOnly": True}], ttl_s)

    return TurnSource("the shared secret", fetch)


def read_servers(value: Any) -> list[IceServer]:
    """The usable entries of a list of ICE servers, or of a single one.

    An entry without a usable URL (`stun:`, `stuns:`, `turn:`, `turns:`) is left out.
    """
    entries = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [server for entry in entries if (server := _read_server(entry)) is not None]


def server_urls(server: IceServer) -> list[str]:
    """The URLs of one entry."""
    urls = server["urls"]
    return [urls] if isinstance(urls, str) else list(urls)


async def _from_huggingface(secrets: Secrets, urls: TurnUrls) -> Credentials:
    answer = await _request(
        "GET",
        urls.huggingface,
        params={"ttl": _TTL_S},
        headers={"Authorization": f"Bearer {secrets.hf_token}"},
    )
    return _credentials(answer.get("iceServers"), answer.get("ttl"))


async def _from_cloudflare(secrets: Secrets, urls: TurnUrls) -> Credentials:
    answer = await _request(
        "POST",
        f"{urls.cloudflare}/{secrets.cloudflare_key_id}/credentials/generate-ice-servers",
        headers={"Authorization": f"Bearer {secrets.cloudflare_api_token}"},
        json={"ttl": _TTL_S},
    )
    return _credentials(answer.get("iceServers"), answer.get("ttl"))


async def _from_twilio(secrets: Secrets, urls: TurnUrls) -> Credentials:
    answer = await _request(
        "POST",
        f"{urls.twilio}/{secrets.twilio_account_sid}/Tokens.json",
        auth=(secrets.twilio_account_sid or "", secrets.twilio_auth_token or ""),
    )
    return _credentials(answer.get("ice_servers"), answer.get("ttl"))


async def _request(method: str, url: str, **options: Any) -> dict[str, Any]:
    """The JSON object that a service answers. Errors name no URL: it may contain an account."""
    try:
        async with httpx.AsyncClient(timeout=_REQUEST_TIMEOUT_S, transport=OutsideTransport()) as client:
            response = await client.request(method, url, **options)
    except ProxyFailed as error:
        raise TurnError(f"the credential service cannot be asked: {error}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TurnError(f"the credential service does not answer ({type(error).__name__})") from None
    if not response.is_success:
        raise TurnError(f"the credential service answers HTTP {response.status_code}; check the token")
    try:
        answer = response.json()
    except ValueError:
        raise TurnError("the credential service's answer is not JSON") from None
    if not isinstance(answer, dict):
        raise TurnError("the credential service's answer is not a JSON object")
    return answer


def _credentials(servers: Any, ttl_s: Any) -> Credentials:
    usable = read_servers(servers)
    if not usable:
        raise TurnError("the credential service's answer lists no ICE server")
    try:
        seconds = float(ttl_s)
    except (TypeError, ValueError):
        seconds = _TTL_S
    return Credentials(usable, seconds if 0 < seconds < float("inf") else _TTL_S)


def _read_server(entry: Any) -> IceServer | None:
    if not isinstance(entry, dict):
        return None
    given = entry.get("urls")
    urls = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    usable = [url for url in urls if isinstance(url, str) and _is_ice_url(url)]
    if not usable:
        return None
    server: IceServer = {"urls": usable[0] if isinstance(given, str) else usable}
    for key in ("username", "credential"):
        value = entry.get(key)
        server[key] = value if isinstance(value, str) else None
    return server | ({"clientOnly": True} if entry.get("clientOnly") is True else {})


def _is_ice_url(url: str) -> bool:
    try:
        parse_stun_turn_uri(url)
    except ValueError:
        return False
    return True
