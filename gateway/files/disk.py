"""Disk space: what may still be stored, and what is left to everybody else."""

import shutil
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 1 << 30  # a full disk stops logs, caches and other programs, too


def room_bytes(directory: Path) -> int:
    """How much may still be stored in an existing directory, the reserve left alone; negative: it is used."""
    return shutil.disk_usage(directory).free - RESERVE_BYTES
