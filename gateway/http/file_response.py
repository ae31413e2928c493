"""A file as a response: ranges, validators, nothing read before it is asked for."""

import asyncio
import contextlib
from pathlib import Path

from quart import Response, request
from quart.wrappers.response import FileBody

from gateway.errors import ApiError


async def file_response(path: Path, content_type: str | None, *, removed_after: bool = False) -> Response:
    """Quart's `send_file` in all but this: last bytes (`bytes=-4`), which are an error 500 there.

    removed_after: the file is for this response only, which is the whole of it. Raises ApiError 404: it is
    gone.
    """
    try:
        status = await asyncio.to_thread(path.stat)
        response = Response(_File(path, removed_after), mimetype=content_type)
    except OSError as error:  # removed a moment ago
        raise ApiError(404, f"{path.name} not found") from error
    response.content_length = status.st_size
    response.last_modified = status.st_mtime  # type: ignore[assignment]
    response.set_etag(f"{status.st_mtime_ns:x}-{status.st_size:x}")
    if removed_after:
        return response
    response.headers["Accept-Ranges"] = "bytes"
    wanted = request.range  # None also where the header makes no sense: the whole file is the answer then
    single = wanted is not None and wanted.units == "bytes" and len(wanted.ranges) == 1
    return await response.make_conditional(
        request, accept_ranges=True, complete_length=status.st_size if single else None
    )


class _File(FileBody):
    buffer_size = 256 << 10  # 8 KiB, Quart's own, cost a thread switch each

    def __init__(self, path: Path, removed_after: bool) -> None:
        super().__init__(path)
        self._path = path
        self._removed_after = removed_after

    async def make_conditional(self, begin: int, end: int | None) -> int:
        if begin < 0:  # counted from the end
            begin, end = max(0, self.size + begin), None
        return await super().make_conditional(begin, end)

    async def __aenter__(self) -> "_File":
        await super().__aenter__()
        if self._removed_after:
            with contextlib.suppress(OSError):  # Windows keeps the name of an open file
                self._path.unlink()
        return self
