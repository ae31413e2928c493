"""Pictures through memory that this process and a Triton server on the same machine share (Linux)."""

import itertools
import logging
import mmap
import os
from typing import Any

import grpc
import numpy as np
from tritonclient.utils import InferenceServerException

from gateway.leftovers import SHARED_MEMORY
from gateway.serving import Images

logger = logging.getLogger(__name__)

_LIMIT_S = 5.0  # Triton answers at once when it is well

_numbers = itertools.count(1)


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
        size = int(np.prod(shape))
        return np.frombuffer(self._memory, np.uint8, size, offset=self.bytes_each).reshape(shape).copy()

    async def close(self) -> None:
        """Give the memory back. Idempotent, never raises."""
        memory, self._memory = self._memory, None
        if memory is None:
            return
        try:
            await self._client.unregister_system_shared_memory(self.region, client_timeout=_LIMIT_S)
        except (InferenceServerException, grpc.RpcError, grpc.aio.UsageError) as error:
            logger.debug("Shared memory %s was not unregistered: %s", self.region, error)
        (SHARED_MEMORY / self.region).unlink(missing_ok=True)
        self.bytes_each = 0

    async def _open(self, bytes_each: int) -> None:
        self.region = f"{self._prefix}frames_{next(_numbers)}"
        path = SHARED_MEMORY / self.region
        size = bytes_each * (2 if self.both_ways else 1)
        try:
            with path.open("x+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # else a full /dev/shm kills whoever writes there
                self._memory = mmap.mmap(file.fileno(), size)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self.bytes_each = bytes_each
        await self._client.register_system_shared_memory(
            self.region, f"/{self.region}", size, client_timeout=_LIMIT_S
        )
