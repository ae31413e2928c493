"""Which version of our own source runs: that of the package says too little between two releases."""

import hashlib
import importlib.util
from functools import cache
from pathlib import Path


@cache
def source_version(*packages: str) -> str:
    """Hash of the files of these packages, as far as they are installed."""
    digest = hashlib.sha256()
    for package in packages:
        found = importlib.util.find_spec(package)
        for root in () if found is None else found.submodule_search_locations or ():
            for path in sorted(p for p in Path(root).rglob("*") if _counts(p)):
                digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
                if path.suffix == ".py":
                    digest.update(path.read_bytes())
    return digest.hexdigest()


def _counts(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
