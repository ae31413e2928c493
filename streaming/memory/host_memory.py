"""Main memory that this process may still take: of the machine, or of its container. Torch-free."""

from collections.abc import Iterator
from pathlib import Path

# Of a control group, by version: where groups are mounted, and files with bytes of limit and of use.
_V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that programs can still take, caches of files given up; None: not known (not Linux).

    A container's limit, or any other of the control groups that this process is in, counts if less is left
    below it than the machine has. root: of the file system, for tests.
    """
    return min([*_of_machine(root), *_of_groups(root)], default=None)


def _of_machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) << 10


def _of_groups(root: Path) -> Iterator[int]:
    """What is left below the limit of each group with one: this process's own, and those around it."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        mount, limit_file, usage_file, cache_key = _V2 if number == "0" else _V1
        top = root / mount
        group = top / path.strip("/")
        for directory in (group, *group.parents):  # a container may not see its own path: `top` is its group
            limit, usage = _number(directory / limit_file), _number(directory / usage_file)
            if limit is not None and usage is not None:
                yield max(0, limit - usage + _file_cache(directory / "memory.stat", cache_key))
            if directory == top:
                break


def _number(path: Path) -> int | None:
    """The file's only number; None where there is no file, or it says `max`."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _file_cache(path: Path, key: str) -> int:
    """Bytes that count as used and can be given up."""
    return sum(int(line.split()[1]) for line in _lines(path) if line.split(" ")[0] == key)


def _lines(path: Path) -> list[str]:
    """Empty for what cannot be read."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
