"""Memory that is left: the machine's, or that of the control groups around this process."""

from pathlib import Path

import psutil
import pytest

from streaming.memory.host_memory import available_memory

MB = 1 << 20
MACHINE_MB = 8000


def write(root: Path, files: dict[str, str]) -> Path:
    memory = {"proc/meminfo": f"MemFree: 1 kB\nMemAvailable: {MACHINE_MB << 10} kB\n"}
    for name, text in (memory | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group_v2(directory: str, limit: str, used_mb: int, cache_mb: int = 0) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/{directory}memory.max": f"{limit}\n",
        f"sys/fs/cgroup/{directory}memory.current": f"{used_mb * MB}\n",
        f"sys/fs/cgroup/{directory}memory.stat": f"anon 1\ninactive_file {cache_mb * MB}\n",
    }


def group_v1(limit_mb: int, used_mb: int) -> dict[str, str]:
    return {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{limit_mb * MB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{used_mb * MB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * MB}\n",
    }


IN_CONTAINER = {"proc/self/cgroup": "0::/\n"}
IN_SLICE = {"proc/self/cgroup": "0::/a.slice/b.service\n"}
CASES = {
    "no groups": ({}, MACHINE_MB),
    "no limit": (IN_CONTAINER | group_v2("", "max", 900), MACHINE_MB),
    "container": (IN_CONTAINER | group_v2("", str(2000 * MB), 900), 1100),
    "files are given up": (IN_CONTAINER | group_v2("", str(2000 * MB), 900, cache_mb=300), 1400),
    "full": (IN_CONTAINER | group_v2("", str(2000 * MB), 2001), 0),
    "limit above the machine": (IN_CONTAINER | group_v2("", str(1 << 50), 900), MACHINE_MB),
    "limit of a group around": (
        IN_SLICE | group_v2("a.slice/b.service/", "max", 5) | group_v2("a.slice/", str(1000 * MB), 400),
        600,
    ),
    "version 1, own path not visible": (group_v1(3000, 1000), 2100),
}


@pytest.mark.parametrize(("files", "left_mb"), CASES.values(), ids=CASES)
def test_the_tightest_limit_counts(files: dict[str, str], left_mb: int, tmp_path: Path) -> None:
    assert available_memory(write(tmp_path, files)) == left_mb * MB


def test_nothing_is_known_where_there_is_no_proc(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def test_this_machine_tells() -> None:
    here = available_memory()

    assert here is not None
    assert 0 < here <= psutil.virtual_memory().total
