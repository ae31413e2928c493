"""Names of Triton's shared-memory regions, and removal of those whose owner is gone.

A model process that is killed leaves its regions in `/dev/shm`; the name says which gateway they belonged to.
"""

import itertools
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

DIRECTORY = Path("/dev/shm")
_NAME = re.compile(r"wanstream_(?P<namespace>\d+)_(?P<pid>\d+)_(?P<number>\d+)_")
_numbers = itertools.count(1)
_live: set[str] = set()  # prefixes of servers that this process runs now


def claim_prefix() -> str:
    """A prefix of region names for one server, unique among the servers on this machine."""
    prefix = f"wanstream_{_pid_namespace()}_{os.getpid()}_{next(_numbers)}_"
    _live.add(prefix)
    return prefix


def release_prefix(prefix: str) -> None:
    """Remove the regions of a server whose processes are all dead."""
    _live.discard(prefix)
    _remove(DIRECTORY.glob(f"{prefix}*"))


def sweep() -> int:
    """Remove the regions of gateways that no longer run; returns how many. Those of other programs stay."""
    return _remove(path for path in DIRECTORY.glob("wanstream_*") if _is_stale(path.name))


def _is_stale(name: str) -> bool:
    match = _NAME.match(name)
    # Process ids of another namespace (a container that shares /dev/shm) cannot be judged from here.
    if match is None or int(match["namespace"]) != _pid_namespace() or match[0] in _live:
        return False
    pid = int(match["pid"])
    return pid == os.getpid() or not Path("/proc", str(pid)).exists()


def _remove(paths: Iterable[Path]) -> int:
    count = 0
    for path in list(paths):
        try:
            path.unlink()
            count += 1
        except FileNotFoundError:
            continue  # its owner was still cleaning up
        except PermissionError:
            logger.warning("Cannot remove stale shared memory %s: it belongs to another user", path)
    return count


def _pid_namespace() -> int:
    """Number of this process's PID namespace."""
    return os.stat("/proc/self/ns/pid").st_ino
