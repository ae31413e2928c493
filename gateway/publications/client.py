"""The requests of a WHIP publisher: one that offers a session, one that ends it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import httpx

from gateway.proxies import OutsideTransport, ProxyFailed
from gateway.waiting import within
from gateway.webrtc.signalling import MAX_SDP_CHARACTERS
from streaming.errors import WanstreamError

_SDP: Final = "application/sdp"
ANSWER_S: Final = 15.0  # redirects included
_END_S: Final = 3.0  # the server's own end waits for it
_MAX_REDIRECTS: Final = 5
_TRY_AGAIN: Final = frozenset({408, 409, 425, 429})  # and what is the server's fault
_REASONS: Final = {
    401: "it asks for a token, or for another one",
    403: "it does not allow that with this token",
    404: "it knows no such address",
    405: "the address is not that of a WHIP endpoint",
    409: "somebody publishes there already",
}


class WhipError(WanstreamError):
    """Why nothing is published, as a sentence. is_final: another try would end in the same way."""

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


@dataclass(frozen=True, slots=True)
class Begun:
    """A session of the server. location: its URL; None: it ends by itself, for none of use was named."""

    answer: str
    location: httpx.URL | None


class WhipClient:
    """Asks one WHIP endpoint."""

    def __init__(self, url: str, token: str | None, answer_s: float = ANSWER_S) -> None:
        """answer_s: how long it may take to answer an offer."""
        self._url = httpx.URL(url)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._answer_s = answer_s
        self._http = httpx.AsyncClient(transport=OutsideTransport(), timeout=answer_s, trust_env=False)

    async def begin(self, offer: str) -> Begun:
        """Offer a session. Raises WhipError."""
        try:
            return await within(self._begin(offer), self._answer_s)
        except (asyncio.TimeoutError, httpx.TimeoutException) as error:
            raise WhipError(f"The media server does not answer within {self._answer_s:.0f} s.") from error
        except ProxyFailed as error:
            raise WhipError(f"The media server cannot be asked: {error}.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # their texts may hold the address
            text = f"The media server cannot be reached ({type(error).__name__})."
            raise WhipError(text) from error

    async def end(self, location: httpx.URL) -> None:
        """End a session, if the server is there to hear it. Never raises."""
        try:
            await within(self._request("DELETE", location), _END_S)
        except (asyncio.TimeoutError, httpx.HTTPError, httpx.InvalidURL, WhipError):
            return  # it will miss our media

    async def close(self) -> None:
        await self._http.aclose()

    async def _begin(self, offer: str) -> Begun:
        response, answer = await self._request("POST", self._url, offer.encode())
        status = response.status_code
        if status not in (200, 201):  # some old servers say 200
            reason = _REASONS.get(status, "expected is 201")
            is_final = 300 <= status < 500 and status not in _TRY_AGAIN
            raise WhipError(f"The media server answers {status}: {reason}.", is_final=is_final)
        return Begun(answer, self._session(response))

    async def _request(
        self, method: str, url: httpx.URL, body: bytes | None = None
    ) -> tuple[httpx.Response, str]:
        """The answer and its text, after redirects. Raises WhipError and what httpx raises."""
        headers = self._headers | ({} if body is None else {"Content-Type": _SDP})
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._http.stream(method, url, content=body, headers=headers) as response:
                location = response.headers.get("Location")
                if response.status_code not in (307, 308) or location is None:
                    return response, await _text(response.aiter_bytes())
            url = self._resolved(url, location)
        raise WhipError(f"The media server redirects more than {_MAX_REDIRECTS} times.")

    def _session(self, response: httpx.Response) -> httpx.URL | None:
        location = response.headers.get("Location")
        try:
            return None if location is None else self._resolved(response.url, location)
        except (WhipError, httpx.InvalidURL):  # as of proxies that do not tell that there is TLS before them
            return None

    def _resolved(self, base: httpx.URL, location: str) -> httpx.URL:
        """Where `location` points to. It is sent the token: media servers spread sessions in this way."""
        url = base.join(location)
        if url.scheme not in ("http", "https") or (base.scheme, url.scheme) == ("https", "http"):
            raise WhipError("The media server sends us to an address without TLS, or none of HTTP.")
        return url


async def _text(pieces: AsyncIterator[bytes]) -> str:
    body = b""
    async for piece in pieces:
        body += piece
        if len(body) > MAX_SDP_CHARACTERS:
            raise WhipError(f"The media server's answer is longer than {MAX_SDP_CHARACTERS >> 10} KiB.")
    return body.decode("utf-8", "replace")
