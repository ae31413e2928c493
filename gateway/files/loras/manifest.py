"""Where installed LoRA files came from: `lora_manifest.json` beside them (api.md 6.2)."""

import json
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger(__name__)

FILE_NAME: Final = "lora_manifest.json"
_VERSION: Final = "1.0"
_MAX_BYTES: Final = 16 << 20

Entries = dict[str, dict[str, Any]]  # by POSIX path relative to the LoRA directory


def read_manifest(directory: Path) -> Entries:
    """The entries; a manifest that is absent or cannot be read counts as empty."""
    path = directory / FILE_NAME
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        entries = json.loads(path.read_bytes())["entries"]
        return {k: v for k, v in entries.items() if isinstance(v, dict)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning("%s cannot be read and counts as empty: %s", path, error)
        return {}


def change_manifest(directory: Path, change: Callable[[Entries], object]) -> None:
    """Apply `change` to the entries and write them, all or nothing. Not for several threads at once."""
    entries = read_manifest(directory)
    change(entries)
    temporary = directory / f".{FILE_NAME}-{uuid.uuid4().hex}"
    try:
        temporary.write_text(json.dumps({"version": _VERSION, "entries": entries}, indent=2))
        os.replace(temporary, directory / FILE_NAME)
    finally:
        temporary.unlink(missing_ok=True)
