"""Fetches one LoRA file from the internet."""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from pathlib import Path
from typing import Any, Final

import httpx

from gateway.config import Secrets
from gateway.errors import ApiError
from gateway.files.disk import room_bytes
from gateway.files.loras.sources import LoraEndpoints, LoraSource
from gateway.files.public_http import AddressNotAllowedError, PublicTransport, origin
from gateway.proxies import ProxyFailed

logger = logging.getLogger(__name__)

_TIMEOUT: Final = httpx.Timeout(30.0, connect=30.0, read=60.0)
_MAX_REDIRECTS: Final = 5
_PIECE_BYTES: Final = 1 << 20
_MAX_API_BYTES: Final = 4 << 20
_PASSED_ON: Final = frozenset({401, 403, 404})


class LoraDownloader:
    """One HTTP client for LoRA files; tokens go only to the services that they belong to."""

    def __init__(self, endpoints: LoraEndpoints, secrets: Secrets) -> None:
        self._endpoints = endpoints
        self._secrets = secrets

    async def civitai_name(self, source: LoraSource) -> str | None:
        """The name of the file behind a CivitAI download URL, asked of CivitAI's API; None: nobody knows."""
        if source.civitai_version is None:
            return None
        url = httpx.URL(f"{self._endpoints.civitai}/api/v1/model-versions/{source.civitai_version}")
        try:
            async with self._open(LoraSource("civitai", url, url)) as response:
                content = bytearray()
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > _MAX_API_BYTES:
                        return None
            return _primary_name(json.loads(content))
        except (ApiError, ValueError, RecursionError) as error:
            logger.info("CivitAI does not tell the name of version %s: %s", source.civitai_version, error)
            return None

    async def announced_name(self, source: LoraSource) -> str | None:
        """The name that the answer's Content-Disposition proposes. Raises ApiError."""
        async with self._open(source) as response:
            message = Message()
            message["Content-Disposition"] = response.headers.get("Content-Disposition", "")
            name = message.get_filename()
        return re.split(r"[/\\]", name)[-1] if name else None

    async def fetch(self, source: LoraSource, path: Path) -> str:
        """Store the file as `path`, which must not exist; its SHA-256 in hex.

        Raises ApiError: 401, 403, 404 as the service answers them, 507 (disk full), 500 (anything else). A
        part that was stored stays.
        """
        async with self._open(source) as response:
            expected = int(response.headers.get("Content-Length", 0))
            return await store(response.aiter_raw(_PIECE_BYTES), path, expected)

    @asynccontextmanager
    async def _open(self, source: LoraSource) -> AsyncIterator[httpx.Response]:
        """The answer to a GET, redirects followed. Raises ApiError."""
        host = source.url.host
        trusted = (self._endpoints.huggingface, self._endpoints.civitai)
        try:
            async with httpx.AsyncClient(transport=PublicTransport(trusted), timeout=_TIMEOUT) as client:
                url = source.request_url
                for _ in range(_MAX_REDIRECTS + 1):
                    request = self._request(client, source, url)
                    response = await client.send(request, stream=True)
                    if not response.has_redirect_location:
                        break
                    await response.aclose()
                    url = url.join(response.headers["Location"])
                else:
                    raise ApiError(500, f"{host} redirects in circles.")
                try:
                    _require_success(response, host)
                    yield response
                finally:
                    await response.aclose()
        except AddressNotAllowedError as error:
            raise ApiError(400, f"The download was refused: {error}.") from error
        except ProxyFailed as error:
            raise ApiError(500, f"The download from {host} failed: {error}.") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The text of these errors may hold the URL, and the URL a token.
            raise ApiError(
                500, f"The download from {host} failed ({type(error).__name__}); try again."
            ) from None

    def _request(self, client: httpx.AsyncClient, source: LoraSource, url: httpx.URL) -> httpx.Request:
        headers = {"Accept-Encoding": "identity"}
        if origin(url) == origin(source.url):
            if source.kind == "huggingface" and self._secrets.hf_token:
                headers["Authorization"] = f"Bearer {self._secrets.hf_token}"
            if source.kind == "civitai" and self._secrets.civitai_token and "token" not in url.params:
                url = url.copy_set_param("token", self._secrets.civitai_token)
        return client.build_request("GET", url, headers=headers)


async def store(pieces: AsyncIterable[bytes], path: Path, expected_bytes: int) -> str:
    """Write a new file; its SHA-256 in hex. expected_bytes: 0 where nobody knows.

    Raises ApiError 507 (disk full) and OSError. A part that was stored stays.
    """
    digest = hashlib.sha256()
    await asyncio.to_thread(_require_space, path.parent, expected_bytes)
    file = await asyncio.to_thread(path.open, "xb")
    try:
        async for piece in pieces:
            await asyncio.to_thread(_store, piece, file, digest, path.parent)
    finally:
        await asyncio.to_thread(file.close)
    return digest.hexdigest()


def _store(piece: bytes, file: Any, digest: Any, directory: Path) -> None:
    _require_space(directory, len(piece))
    file.write(piece)
    digest.update(piece)


def _require_space(directory: Path, size_bytes: int) -> None:
    room = room_bytes(directory)
    if room < size_bytes:
        raise ApiError(
            507,
            f"The file needs {size_bytes / (1 << 20):.0f} MB but the server's disk has only "
            f"{max(0, room) / (1 << 20):.0f} MB left for files; remove some from {directory}.",
        )


def _require_success(response: httpx.Response, host: str) -> None:
    if response.is_success:
        return
    status = response.status_code
    advice = {401: "a token is needed", 403: "access is not granted", 404: "no such file"}.get(status)
    text = f"{host} answers HTTP {status}" + (f": {advice}." if advice else "; try again later.")
    raise ApiError(status if status in _PASSED_ON else 500, text)


def _primary_name(version: Any) -> str | None:
    files = version.get("files") if isinstance(version, dict) else None
    named = [f for f in files or () if isinstance(f, dict) and isinstance(f.get("name"), str)]
    named.sort(key=lambda f: not f.get("primary"))
    return str(named[0]["name"]) if named else None
