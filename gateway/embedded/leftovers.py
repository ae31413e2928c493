"""Names of the files that an embedded server leaves behind when it is killed, and their removal.

A model process that is killed leaves its shared memory in `/dev/shm`, a gateway that is killed its temporary
directory. The names say which gateway they belonged to, so the next one can tell what nobody needs any more.
"""

import itertools
import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from gateway.embedded.plain_paths import temporary_directories

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_NAME = re.compile(r"wanstream_(?P<namespace>\d+)_(?P<pid>\d+)_\d+_")
_numbers = itertools.count(1)
_live: set[str] = set()  # prefixes of servers that this process runs now


def claim_prefix() -> str:
    """A prefix of file names for one server, unique among the servers on this machine."""
    prefix = f"wanstream_{_pid_namespace()}_{os.getpid()}_{next(_numbers)}_"
    _live.add(prefix)
    return prefix


def release_prefix(prefix: str) -> None:
    """Remove the files of a server whose processes are all dead."""
    _live.discard(prefix)
    _remove(path for path in _candidates() if path.name.startswith(prefix))


def sweep() -> int:
    """Remove the files of gateways that no longer run; returns how many. Those of other programs stay."""
    return _remove(path for path in _candidates() if _is_stale(path.name))


def _candidates() -> list[Path]:
    return [
        path
        for directory in dict.fromkeys((SHARED_MEMORY, *temporary_directories()))
        for path in list(directory.glob("wanstream_*"))
    ]


def _is_stale(name: str) -> bool:
    match = _NAME.match(name)
    # Process ids of another namespace (a container that shares /dev/shm) cannot be judged from here.
    if match is None or int(match["namespace"]) != _pid_namespace() or match[0] in _live:
        return False
    pid = int(match["pid"])
    return pid == os.getpid() or not Path("/proc", str(pid)).exists()


def _remove(paths: Iterable[Path]) -> int:
    count = 0
    for path in paths:
        try:
            # Anybody may put a link of such a name into these directories: never through it.
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            count += 1
        except FileNotFoundError:
            continue  # its owner was still cleaning up
        except OSError as error:
            logger.warning("Cannot remove stale %s: %s", path, error.strerror or error)
    return count


def _pid_namespace() -> int:
    """Number of this process's PID namespace."""
    return os.stat("/proc/self/ns/pid").st_ino
