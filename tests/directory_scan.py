"""What a directory holds, to compare before and after."""

import hashlib
import os
from pathlib import Path


def scan(directory: Path) -> dict[str, str]:
    """Every file, directory and link below `directory`: relative path -> kind and content."""
    found = {}
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder) / name
            found[str(path.relative_to(directory))] = _describe(path)
    return found


def _describe(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        return "directory"
    return hashlib.sha256(path.read_bytes()).hexdigest()
