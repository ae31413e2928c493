"""Shared memory with Triton: who may read it, and what is said and done when Triton does not play along."""

import asyncio
import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from gateway.embedded.leftovers import SHARED_MEMORY
from gateway.triton import shared_frames
from gateway.triton.shared_frames import BESIDE, SharedFrames, explain_full_memory, remove_left_frames

FULL = (
    "Unable to initialize shared memory key 'wanstream_1' to requested size (67108864 bytes). If you are "
    "running Triton inside docker, use '--shm-size' flag to control the shared memory region size. Each "
    "Python backend model instance requires at least 1 MB of shared memory. Error: No space left on device"
)
PICTURES = np.full((2, 8, 8, 3), 7, np.uint8)
PREFIX = f"wanstream_test_{os.getpid()}_"


OWNER = """
import asyncio, sys
import numpy as np
from gateway.triton.shared_frames import SharedFrames
from tests.unit.test_shared_frames import Client
shared = SharedFrames(Client(), sys.argv[1], both_ways=False)
asyncio.run(shared.put(np.zeros((1, 8, 8, 3), np.uint8)))
print("there", flush=True)
sys.stdin.read()
"""


class Client:
    """Triton's side: refuses to let go of a region as often as it is told to."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.regions: set[str] = set()
        self.freed = asyncio.Event()

    async def register_system_shared_memory(self, name: str, *_: Any, **__: Any) -> None:
        self.regions.add(name)

    async def get_system_shared_memory_status(self, **_: Any) -> dict[str, Any]:
        return {}

    async def unregister_system_shared_memory(self, name: str, **_: Any) -> None:
        if self.refusals:
            self.refusals -= 1
            raise InferenceServerException(
                f"Cannot unregister shared memory region '{name}', it is currently in use."
            )
        self.regions.discard(name)
        self.freed.set()


async def test_only_the_owner_may_read_a_cameras_pictures() -> None:
    shared = SharedFrames(Client(), PREFIX, both_ways=False)
    before = os.umask(0)
    try:
        await shared.put(PICTURES)
    finally:
        os.umask(before)
    mode = (SHARED_MEMORY / shared.region).stat().st_mode & 0o777
    await shared.close()

    assert mode == 0o600


async def test_a_region_that_is_in_use_is_given_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_frames, "_PAUSE_S", 0.01)
    client = Client(refusals=3)
    shared = SharedFrames(client, PREFIX, both_ways=False)
    await shared.put(PICTURES)

    await shared.close()
    kept = len(client.regions)
    await asyncio.wait_for(client.freed.wait(), 30)

    assert (kept, client.regions) == (1, set())


async def test_files_of_a_killed_owner_are_removed_beside_a_triton_that_knows_nothing_of_them(
    tmp_path: Path,
) -> None:
    other, ours = f"{BESIDE}killed{os.getpid()}_", f"{BESIDE}ours{os.getpid()}_"
    link, pipe = SHARED_MEMORY / f"{BESIDE}link{os.getpid()}", SHARED_MEMORY / f"{BESIDE}pipe{os.getpid()}"
    (tmp_path / "somebody's").write_bytes(b"")
    shared = SharedFrames(Client(), ours, both_ways=False)
    await shared.put(PICTURES)
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, other, **pipes)
    try:
        assert owner.stdout is not None
        assert await owner.stdout.readline() == b"there\n"
        link.symlink_to(tmp_path / "somebody's")
        os.mkfifo(pipe)
        await remove_left_frames(Client(), "another gateway's")
        before = [name_of(prefix) for prefix in (other, ours)]

        owner.kill()
        await owner.wait()
        await remove_left_frames(Client(), "another gateway's")
        after = [name_of(prefix) for prefix in (other, ours)]
    finally:
        if owner.returncode is None:
            owner.kill()
            await owner.wait()
        for path in (link, pipe):
            path.unlink(missing_ok=True)
    await shared.close()

    assert all(before)
    assert after == [None, before[1]]
    assert (tmp_path / "somebody's").exists()
    assert name_of(ours) is None


def name_of(prefix: str) -> str | None:
    return next((path.name for path in SHARED_MEMORY.glob(f"{prefix}*")), None)


async def test_a_full_memory_is_told_with_the_need_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    shared = SharedFrames(Client(), PREFIX, both_ways=True)

    with pytest.raises(OSError, match=r"1 MB of /dev/shm are needed and \d+ MB are free.*--shm-size=4g"):
        await shared.put(PICTURES)


def test_tritons_word_for_a_full_memory_becomes_the_need_and_the_remedy() -> None:
    told = explain_full_memory(FULL)

    assert "needs 64 MB of /dev/shm" in told
    assert "--shm-size=4g" in told
    assert explain_full_memory("Out of memory") == "Out of memory"


async def test_memory_that_triton_cannot_open_is_not_used_and_not_left() -> None:
    class Elsewhere(Client):
        async def register_system_shared_memory(self, name: str, *_: Any, **__: Any) -> None:
            raise InferenceServerException(f"Unable to open shared memory region: '/{name}'", "INTERNAL")

    shared = SharedFrames(Elsewhere(), PREFIX, both_ways=False)

    with pytest.raises(OSError, match="both need the same /dev/shm"):
        await shared.put(PICTURES)

    assert not list(SHARED_MEMORY.glob(f"{PREFIX}*"))
