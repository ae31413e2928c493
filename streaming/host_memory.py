"""Main memory of this machine. Torch-free."""

from pathlib import Path


def available_memory() -> int | None:
    """Bytes that programs can still take, caches of files given up; None: not known (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return None if available is None else int(available.split()[1]) << 10
