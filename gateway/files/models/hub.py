"""Files of the Hugging Face hub: what a repository holds, and resumable transfers.

Addresses, the stored login, the answers' forms and the meaning of refusals come from `huggingface_hub`; the
bytes do not, because its downloads cannot do what these files of 28 GB need (measured with 1.33 against the
tests' hub):

- `hf_hub_download` removes what it has when it is interrupted, and a killed one's part is never used again:
  each of three tries asked for the whole file, without a Range. A file here goes on where it stopped.
- It runs in a thread that nobody can end before the next bytes come, or the connection times out after 10 s;
  a shutdown may take 5 s. Cancelling a request of httpx ends it at once.
- Its unfinished files have names that Scope's installations do not know; theirs end in `.incomplete`.
- It compares the size; a file of the right size with wrong content is found here by its SHA-256.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import hf_raise_for_status

from gateway.proxies import OutsideTransport, ProxyFailed, ProxyUnusable
from streaming.errors import WanstreamError

logger = logging.getLogger(__name__)

T = TypeVar("T")

INCOMPLETE: Final = ".incomplete"
_TIMEOUT: Final = httpx.Timeout(30.0, read=60.0)
_PIECE_BYTES: Final = 4 << 20
_FLUSH_S: Final = 0.5
_HASH_PIECE_BYTES: Final = 16 << 20
_MAX_RETRY_AFTER_S: Final = 60.0
_GO_ON: Final = "Start the download again to go on where it stopped."
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

OnBytes = Callable[[int], None]  # bytes of the file that are stored by now


class HubError(WanstreamError):
    """The hub refused or failed for good; the text says what and where, and holds no token."""


class HubUnreachableError(WanstreamError):
    """No hub answers at all."""


class _Transient(Exception):
    """Another try may succeed. retry_after_s: what the hub asks for."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _NoConnection(Exception):
    """No answer came, or not to its end."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at one commit."""

    repository: str
    commit: str
    path: str
    size_bytes: int
    sha256: str | None  # hex; None: a small file whose hash is of another kind

    def __str__(self) -> str:
        return f"{self.repository}: {self.path}"


class Hub:
    """A client of one hub. The token is sent to the hub only, never along with a redirect."""

    def __init__(
        self, endpoint: str, token: str | None, retry_delays_s: Sequence[float] = (1.0, 4.0, 15.0)
    ) -> None:
        """endpoint: such as https://huggingface.co. retry_delays_s: before each further try of a request."""
        self._endpoint = endpoint.rstrip("/")
        self._retry_delays_s = retry_delays_s
        # Not `build_hf_headers`: it asks huggingface.co first, for what it might tell of the program.
        headers = {"User-Agent": f"wanstream/{version('wanstream')}", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        # httpx drops the Authorization header when a redirect leads to another origin.
        self._client = httpx.AsyncClient(
            headers=headers, timeout=_TIMEOUT, follow_redirects=True, transport=OutsideTransport()
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def files(self, repository: str, *, patient: bool = True) -> list[HubFile]:
        """All files of a repository's main branch. Raises HubError and HubUnreachableError.

        patient: False asks once, for somebody who waits for the answer
        """
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise HubUnreachableError("HF_HUB_OFFLINE forbids to ask the hub.")
        try:
            delays_s = self._retry_delays_s if patient else ()
            return await self._retrying(repository, lambda: self._files(repository), delays_s)
        except _NoConnection as error:
            raise HubUnreachableError(f"{self._endpoint} cannot be reached: {error}.") from None

    async def fetch(self, file: HubFile, target: Path, on_bytes: OnBytes) -> None:
        """Store `file` as `target`, from where an earlier try stopped.

        Until it is complete, and its size and hash are right, it is called `<target>.incomplete`. Raises
        HubError and OSError.
        """
        try:
            await self._retrying(str(file), lambda: self._fetch(file, target, on_bytes), self._retry_delays_s)
        except _NoConnection as error:
            raise HubError(f"{file}: {error}. {_GO_ON}") from None

    async def _retrying(self, what: str, attempt: Callable[[], Awaitable[T]], delays_s: Sequence[float]) -> T:
        """Raises HubError, and _NoConnection when the last try got no answer."""
        for delay_s in (*delays_s, None):
            connected = True
            try:
                return await attempt()
            except _Transient as failure:
                reason, retry_after_s = str(failure), failure.retry_after_s
            except httpx.UnsupportedProtocol:
                raise HubError(f"{what}: HF_ENDPOINT must be a URL such as https://huggingface.co.") from None
            except ProxyUnusable as error:
                raise HubError(f"{what}: {error}.") from None
            except (httpx.TransportError, httpx.DecodingError) as error:
                # The text of other errors may hold a signed URL.
                told = str(error) if isinstance(error, ProxyFailed) else type(error).__name__
                reason, retry_after_s = f"connection failed ({told})", 0.0
                connected = False
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise HubError(f"{what}: {type(error).__name__}; check HF_ENDPOINT.") from None
            if delay_s is None:
                break
            logger.warning("%s: %s; another try follows", what, reason)
            await asyncio.sleep(max(delay_s, min(retry_after_s, _MAX_RETRY_AFTER_S)))
        if not connected:
            raise _NoConnection(reason)
        raise HubError(f"{what}: {reason}. {_GO_ON}")

    async def _files(self, repository: str) -> list[HubFile]:
        url = f"{self._endpoint}/api/models/{quote(repository)}/revision/main"
        response = await self._client.get(url, params={"blobs": "true"})
        await _require_success(response, repository)
        try:
            info = huggingface_hub.ModelInfo(**response.json())
            return [_hub_file(repository, info.sha, sibling) for sibling in info.siblings or ()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError(
                f"{repository}: {self._endpoint} does not answer like a Hugging Face hub."
            ) from error

    async def _fetch(self, file: HubFile, target: Path, on_bytes: OnBytes) -> None:
        part = target.with_name(target.name + INCOMPLETE)
        digest = hashlib.sha256()
        stored = await asyncio.to_thread(_usable_part, part, file.size_bytes, digest)
        on_bytes(stored)
        if stored < file.size_bytes or stored == 0:  # an empty file, too, has to be made
            digest = await self._transfer(file, part, stored, digest, on_bytes)
        if file.sha256 is not None and digest.hexdigest() != file.sha256:
            await asyncio.to_thread(part.unlink)
            on_bytes(0)
            raise _Transient("the content does not match its hash")
        await asyncio.to_thread(os.replace, part, target)

    async def _transfer(self, file: HubFile, part: Path, stored: int, digest: Any, on_bytes: OnBytes) -> Any:
        """Get what is missing behind the first `stored` bytes; the digest of the whole file."""
        url = huggingface_hub.hf_hub_url(
            file.repository, file.path, revision=file.commit, endpoint=self._endpoint
        )
        headers = {"Range": f"bytes={stored}-"} if stored else {}
        async with self._client.stream("GET", url, headers=headers) as response:
            if response.status_code == 416:
                await asyncio.to_thread(part.unlink, missing_ok=True)
                raise _Transient("the hub refuses to resume")
            await _require_success(response, str(file))
            if stored and not _continues_at(response, stored):
                stored, digest = 0, hashlib.sha256()
            output = await asyncio.to_thread(_Output, part, stored, digest)
            try:
                async for piece in response.aiter_raw():
                    stored += len(piece)
                    if stored > file.size_bytes:
                        break
                    if output.add(piece):
                        await asyncio.to_thread(output.flush)
                    on_bytes(stored)
            finally:  # what came before a failure need not come again
                await asyncio.to_thread(output.close)
        if stored > file.size_bytes:
            await asyncio.to_thread(part.unlink)
            raise _Transient(f"more than the announced {file.size_bytes} bytes came")
        if stored < file.size_bytes:
            raise _Transient(f"only {stored} of {file.size_bytes} bytes came")
        return digest


def _hub_file(repository: str, commit: str | None, entry: RepoSibling) -> HubFile:
    size_bytes = entry.lfs.size if entry.lfs else entry.size
    if commit is None or not isinstance(size_bytes, int) or not isinstance(entry.rfilename, str):
        raise TypeError("the commit, and size and rfilename of each file, are needed")
    return HubFile(repository, commit, entry.rfilename, size_bytes, entry.lfs.sha256 if entry.lfs else None)


def _usable_part(part: Path, size_bytes: int, digest: Any) -> int:
    """Length of the unfinished file, whose content goes into `digest`; one that is too long is removed."""
    with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
        stored = os.fstat(file.fileno()).st_size
        if stored <= size_bytes:
            while piece := file.read(_HASH_PIECE_BYTES):
                digest.update(piece)
            return stored
        part.unlink()
    return 0


class _Output:
    """An unfinished file that is written in large pieces, and its digest."""

    def __init__(self, part: Path, stored: int, digest: Any) -> None:
        """stored: bytes to keep, all or none."""
        part.parent.mkdir(parents=True, exist_ok=True)
        self._file = part.open("ab" if stored else "wb")
        self._digest = digest
        self._buffer = bytearray()
        self._flushed_at = time.monotonic()

    def add(self, piece: bytes) -> bool:
        """Take a piece; whether it is time to flush."""
        self._buffer += piece
        return len(self._buffer) >= _PIECE_BYTES or time.monotonic() > self._flushed_at + _FLUSH_S

    def flush(self) -> None:
        self._file.write(self._buffer)
        self._file.flush()
        self._digest.update(self._buffer)
        self._buffer.clear()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        with self._file:
            self.flush()
            os.fsync(self._file.fileno())  # after a power cut, too, a file with its final name is whole


def _continues_at(response: httpx.Response, stored: int) -> bool:
    """Whether an answer goes on behind the first `stored` bytes; a server may also send all of the file."""
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return response.status_code == 206 and start == str(stored)


async def _require_success(response: httpx.Response, what: str) -> None:
    status = response.status_code
    if status in _TRANSIENT:
        wait = response.headers.get("Retry-After", "")
        raise _Transient(f"HTTP {status}", float(wait) if wait.isdecimal() else 0.0)
    if response.is_error:
        await response.aread()  # the library reads the hub's own explanation
    try:
        hf_raise_for_status(response)
    except HfHubHTTPError as error:  # its text may hold a signed URL
        raise HubError(f"{what}: HTTP {status}, {_advice(error, status)}.") from None


def _advice(error: HfHubHTTPError, status: int) -> str:
    if isinstance(error, GatedRepoError) or status == 403:
        return "access is not granted: accept its licence on huggingface.co and set HF_TOKEN"
    if status == 401:
        return "the repository is private or does not exist: set HF_TOKEN to a token that may read it"
    return "no such repository or file" if status == 404 else "the hub refuses the request"
