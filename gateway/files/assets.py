"""Reference images and videos that users upload (api.md 7)."""

import asyncio
import contextlib
import errno
import logging
import os
import time
import uuid
from collections.abc import AsyncIterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote

from gateway.errors import ApiError
from gateway.files import media
from gateway.files.disk import room_bytes
from gateway.files.media import Kind, MediaError
from gateway.http.client_names import target_inside
from gateway.http.paths import PathNotAllowedError, is_file, resolve_inside
from gateway.http.uploads import not_stalled

logger = logging.getLogger(__name__)

MAX_UPLOAD_BYTES: Final = 50 << 20
_TEMPORARY: Final = ".upload-"
_STALE_S: Final = 24 * 3600.0  # an upload that was cut off by the end of its process
_HEAD_BYTES: Final = 12
_MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Asset:
    """One file below the assets directory."""

    path: Path  # absolute
    relative: Path
    kind: Kind
    size_bytes: int
    created_at: float  # Unix seconds

    @property
    def folder(self) -> str | None:
        folder = self.relative.parent.as_posix()
        return None if folder == "." else folder

    def describe(self) -> dict[str, Any]:
        """The object that clients know."""
        return {
            "name": self.path.stem,
            "path": str(self.path),
            "size_mb": round(self.size_bytes / (1 << 20), 2),
            "folder": self.folder,
            "type": self.kind,
            "created_at": self.created_at,
            "url": f"/api/v1/assets/{quote(self.relative.as_posix())}",
        }


class Assets:
    """The files below one directory. Nothing outside it is read or written."""

    def __init__(self, directory: Path, quota_bytes: int | None = None) -> None:
        """quota_bytes: how much all files together may have; None: as much as the disk has room for."""
        self._directory = directory
        self._quota_bytes = quota_bytes
        self._decoding = asyncio.Semaphore(1)  # a picture of 64 megapixels takes 250 MB for a moment

    async def entries(self, kind: Kind | None = None) -> list[dict[str, Any]]:
        """All assets, or those of one kind, the newest first."""
        assets = await asyncio.to_thread(lambda: list(self._scan()))
        assets.sort(key=lambda a: (-a.created_at, a.folder or "", a.path.stem))
        return [asset.describe() for asset in assets if kind in (None, asset.kind)]

    async def upload(
        self, name: str, body: AsyncIterable[bytes], length: int | None = None
    ) -> dict[str, Any]:
        """Store a file, in place of one of that name if there is one.

        length: of the body in bytes, where known. The answer's `problem` says why a stored file cannot be
        decoded. Raises ApiError: 400 (name, suffix, empty, an image of another format or too large), 408
        (stalled), 413 (over 50 MiB), 507 (no room on the disk, or in the quota).
        """
        if kind_of_name(name) is None:
            raise ApiError(400, f"Invalid file type. Allowed types: {', '.join(media.SUFFIXES)}")
        target = await asyncio.to_thread(target_inside, self._directory, name)
        if (length or 0) > MAX_UPLOAD_BYTES:
            raise _too_large()
        temporary = self._directory / f"{_TEMPORARY}{uuid.uuid4().hex}{target.suffix}"
        try:
            await asyncio.to_thread(self._require_room, target, length or 0)
            await self._receive(temporary, not_stalled(body))
            async with self._decoding:
                problem = await asyncio.to_thread(self._accept, temporary, target)
        except OSError as error:
            raise _disk_error(error, target) from error
        finally:
            await asyncio.to_thread(temporary.unlink, missing_ok=True)
        logger.info("Asset %s stored%s", target, f"; {problem}" if problem else "")
        asset = await asyncio.to_thread(self._asset, target.relative_to(self._directory.resolve()))
        if asset is None:
            raise ApiError(409, f"'{target.name}' was removed while it was stored; send it again.")
        return asset.describe() | {"problem": problem}

    def find(self, name: str) -> Path:
        """The file that a client's path means, relative or absolute. Raises ApiError 403 and 404."""
        try:
            path = resolve_inside(self._directory, name)
        except PathNotAllowedError as error:
            raise ApiError(403, "Invalid path") from error
        hidden = any(part.startswith(".") for part in path.relative_to(self._directory.resolve()).parts)
        if hidden or media.kind_of(path) is None or not is_file(path):
            raise ApiError(404, "Asset not found")
        return path

    async def thumbnail(self, path: Path) -> bytes:
        """A WebP picture of at most 256x256 pixels of a file that `find` found. Raises ApiError 404."""
        async with self._decoding:
            try:
                return await asyncio.to_thread(_thumbnail, path)
            except (MediaError, OSError) as error:
                raise ApiError(404, f"There is no thumbnail of '{path.name}': {error}") from error

    def remove_stale(self) -> None:
        """Remove what uploads left behind whose process ended. For the start of the server."""
        for path in self._directory.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _STALE_S:
                    path.unlink()

    async def _receive(self, path: Path, body: AsyncIterable[bytes]) -> None:
        size = 0
        file = await asyncio.to_thread(_create, path)
        try:
            async for piece in body:
                size += len(piece)
                if size > MAX_UPLOAD_BYTES:
                    raise _too_large()
                await asyncio.to_thread(_store, piece, file, path.parent)
        finally:
            await asyncio.to_thread(file.close)
        if size == 0:
            raise ApiError(400, "The file is empty; send its content as the request's body.")

    def _accept(self, temporary: Path, target: Path) -> str | None:
        """Check a complete file and move it into place; why it cannot be decoded, if so."""
        problem = None
        with temporary.open("rb") as file:
            if not media.header_matches(target, file.read(_HEAD_BYTES)):
                what = media.content_type(target)
                raise ApiError(400, f"The content of '{target.name}' is not {what}: rename or convert it.")
        if media.kind_of(target) == "image" and (media.image_pixels(temporary) or 0) > media.MAX_PIXELS:
            limit = media.MAX_PIXELS // 1_000_000
            raise ApiError(400, f"'{target.name}' has more than {limit} megapixels: make it smaller.")
        try:
            media.check_decodable(temporary)
        except MediaError as error:
            problem = f"'{target.name}' is stored, but {error}."
        self._require_room(target, temporary.stat().st_size, on_disk=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        return problem

    def _require_room(self, target: Path, size_bytes: int, *, on_disk: bool = False) -> None:
        """Whether the disk has room for a file and the quota, too. on_disk: it is stored by now.

        Uploads that come at the same time are counted when each is complete. Raises ApiError 507.
        """
        if not on_disk:
            self._directory.mkdir(parents=True, exist_ok=True)
            _require_disk(self._directory, size_bytes)
        if self._quota_bytes is None:
            return
        others = sum(a.size_bytes for a in self._scan() if a.path.resolve() != target)
        if others + size_bytes > self._quota_bytes:
            raise ApiError(
                507,
                f"The assets may have {self._quota_bytes / _MB:.0f} MB together (WANSTREAM_ASSETS_QUOTA_MB) "
                f"and have {others / _MB:.1f} MB without this file; remove some from {self._directory}.",
            )

    def _scan(self) -> Iterator[Asset]:
        for folder, folders, files in os.walk(self._directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                relative = (Path(folder) / name).relative_to(self._directory)
                asset = None if name.startswith(".") else self._asset(relative)
                if asset is not None:
                    yield asset

    def _asset(self, relative: Path) -> Asset | None:
        """None: not a media file, gone, or a link that leads out of the directory and would not be served."""
        path = self._directory / relative
        kind = media.kind_of(path)
        try:
            if kind is None or not path.resolve().is_relative_to(self._directory.resolve()):
                return None
            status = path.stat()
        except (OSError, RuntimeError):  # a broken link, or a loop of links
            return None
        return Asset(path, relative, kind, status.st_size, status.st_ctime)


def kind_of_name(name: str) -> Kind | None:
    """What a file is by its name; None also for a bare suffix such as `.png`."""
    return media.kind_of(Path(name))


def _store(piece: bytes, file: BinaryIO, directory: Path) -> None:
    _require_disk(directory, len(piece))
    file.write(piece)


def _require_disk(directory: Path, size_bytes: int) -> None:
    room = room_bytes(directory)
    if room < size_bytes:
        raise ApiError(
            507,
            f"The server's disk has only {max(0, room) / _MB:.0f} MB left for files; remove some from "
            f"{directory}.",
        )


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _thumbnail(path: Path) -> bytes:
    status = path.stat()
    return media.thumbnail(path, (status.st_mtime_ns, status.st_size))


def _too_large() -> ApiError:
    return ApiError(413, f"File size exceeds maximum of {MAX_UPLOAD_BYTES >> 20}MB")


def _disk_error(error: OSError, target: Path) -> ApiError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ApiError(507, "The server's disk is full; remove files from it and try again.")
    if error.errno in (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL):
        return ApiError(400, f"Invalid filename '{target.name}': the file system cannot store it.")
    logger.error("Cannot store %s", target, exc_info=error)
    return ApiError(500, f"The server cannot store '{target.name}': {error.strerror or 'disk error'}.")
