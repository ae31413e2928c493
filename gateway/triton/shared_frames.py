"""Pictures through memory that this process and a Triton server on the same machine share (Linux)."""

import asyncio
import contextlib
import errno
import itertools
import logging
import math
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import grpc
import numpy as np
from tritonclient.utils import InferenceServerException

from gateway.embedded.leftovers import SHARED_MEMORY
from gateway.files.locks import lock
from gateway.serving.interface import Images

logger = logging.getLogger(__name__)

_LIMIT_S = 5.0  # Triton answers at once when it is well

_IN_USE = "currently in use"  # Triton keeps a region until the requests that name it have ended
_TRIES, _PAUSE_S = 30, 1.0
_REMEDY = (
    "Give it 4 GB: docker run --shm-size=4g, in Kubernetes an emptyDir of medium Memory at /dev/shm, "
    "elsewhere mount -o remount,size=4g /dev/shm."
)

# Of the files for a Triton that is no child process; the embedded one has a way of its own to sweep.
BESIDE: Final = "wanstream_beside_"

_numbers = itertools.count(1)
_unregistering: set[asyncio.Task[None]] = set()


def explain_full_memory(text: str) -> str:
    """What Triton says when its models get no shared memory, with what they need; other texts as they are."""
    size = re.search(r"(?:requested size \(|to )(\d+) bytes", text)
    if "--shm-size" not in text or size is None:
        return text
    return (
        f"Triton has too little shared memory: a model's process needs {_mb(int(size[1]))} of /dev/shm. "
        f"Each takes 64 MB to begin with, and grows with its pictures. {_REMEDY}"
    )


def _mb(size_bytes: int) -> str:
    return f"{-(-size_bytes // (1 << 20))} MB"


async def remove_left_frames(client: Any, own: str) -> None:
    """Remove what killed gateways have left, also beside a Triton that is gone as well.

    own: start of the names that are in use here.
    """
    status = await client.get_system_shared_memory_status(as_json=True, client_timeout=_LIMIT_S)
    for region in status.get("regions", {}):
        if region.startswith(BESIDE) and not region.startswith(own):
            with contextlib.suppress(InferenceServerException):  # a request of then still uses it
                await client.unregister_system_shared_memory(region, client_timeout=_LIMIT_S)
            (SHARED_MEMORY / region).unlink(missing_ok=True)
    await asyncio.to_thread(_sweep)


def _sweep() -> None:
    """Remove the files whose owner is gone: a process that ends, however, gives its lock back.

    Numbers of processes would not do, for another container may have put its files here.
    """
    for path in SHARED_MEMORY.glob(f"{BESIDE}*"):
        try:
            with open(path, "rb", opener=_itself) as file, lock(file) as is_left:
                if is_left:
                    path.unlink()
                    logger.info("Removed %s, which a killed gateway had left", path)
        except OSError:  # another user's, or gone meanwhile
            continue


class SharedFrames:
    """Room for one chunk of input, and perhaps one of output; made, and made larger, when it is needed.

    Spares the copies into and out of gRPC messages.
    """

    def __init__(self, client: Any, prefix: str, *, both_ways: bool) -> None:
        """prefix: of the file's name in /dev/shm; whoever sweeps after a crash knows it.

        both_ways: output has the size of the input and travels here, too. It has to come in one part: a
        second one would overwrite the first.
        """
        self._client = client
        self._prefix = prefix
        self._memory: mmap.mmap | None = None
        self._in_use = contextlib.ExitStack()  # the open file with the lock that says so
        self.both_ways = both_ways
        self.region = ""
        self.bytes_each = 0  # size of the input's room, which is the first, and of the output's

    async def put(self, video: Images) -> None:
        """Write input pictures, uint8 [T, H, W, 3].

        Raises InferenceServerException and RpcError, and OSError when the machine has not enough memory.
        """
        if video.nbytes > self.bytes_each:
            await self.close()
            await self._open(video.nbytes)
        assert self._memory is not None
        np.frombuffer(self._memory, np.uint8, video.nbytes)[:] = video.reshape(-1)

    def get(self, shape: list[int]) -> Images:
        """A copy of the output pictures of that shape."""
        assert self._memory is not None
        size = math.prod(shape)
        return np.frombuffer(self._memory, np.uint8, size, offset=self.bytes_each).reshape(shape).copy()

    async def close(self) -> None:
        """Give the memory back. Idempotent, never raises."""
        memory, self._memory = self._memory, None
        if memory is None:
            return
        region = self.region
        if not await self._unregister(region):
            trying = asyncio.create_task(self._keep_trying(region), name=f"unregister-{region}")
            _unregistering.add(trying)
            trying.add_done_callback(_unregistering.discard)
        (SHARED_MEMORY / region).unlink(missing_ok=True)
        self._in_use.close()
        self.bytes_each = 0

    async def _unregister(self, region: str) -> bool:
        """False: Triton still uses the region, and keeps it."""
        try:
            await self._client.unregister_system_shared_memory(region, client_timeout=_LIMIT_S)
        except (InferenceServerException, grpc.RpcError, grpc.aio.UsageError) as error:
            logger.debug("Shared memory %s was not unregistered: %s", region, error)
            return _IN_USE not in str(error)
        return True

    async def _keep_trying(self, region: str) -> None:
        for _ in range(_TRIES):
            await asyncio.sleep(_PAUSE_S)
            if await self._unregister(region):
                return
        logger.warning("Triton keeps shared memory %s, which a request of a closed stream still uses", region)

    async def _open(self, bytes_each: int) -> None:
        self.region = f"{self._prefix}frames_{next(_numbers)}"
        path = SHARED_MEMORY / self.region
        size = bytes_each * (2 if self.both_ways else 1)
        try:
            file = self._in_use.enter_context(_created(path))
            os.posix_fallocate(file.fileno(), 0, size)  # else a full /dev/shm kills whoever writes there
            self._memory = mmap.mmap(file.fileno(), size)
        except OSError as error:
            path.unlink(missing_ok=True)
            self._in_use.close()
            free = shutil.disk_usage(SHARED_MEMORY).free
            raise OSError(
                error.errno,
                f"{error.strerror}: {_mb(size)} of {SHARED_MEMORY} are needed and {_mb(free)} are free. "
                + _REMEDY,
            ) from error
        self.bytes_each = bytes_each
        try:
            await self._client.register_system_shared_memory(
                self.region, f"/{self.region}", size, client_timeout=_LIMIT_S
            )
        except InferenceServerException as error:
            await self.close()
            if "UNAVAILABLE" in str(error.status()):
                raise
            text = f"Triton cannot open it ({error.message()}): both need the same {SHARED_MEMORY} and user"
            raise OSError(errno.EACCES, text) from error


@contextlib.contextmanager
def _created(path: Path) -> Iterator[IO[bytes]]:
    """A new file that no sweep takes as long as it is open: it gets its name when it is locked."""
    new = path.with_name(f".{path.name}")
    with open(new, "x+b", opener=_for_owner) as file, lock(file):
        new.rename(path)
        yield file


def _for_owner(path: str, flags: int) -> int:
    """Open a file that other users of the machine cannot read: it holds pictures of a camera."""
    return os.open(path, flags, 0o600)


def _itself(path: str, flags: int) -> int:
    """Open no file that a link names, and do not wait for a pipe: anybody may put such things there."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
