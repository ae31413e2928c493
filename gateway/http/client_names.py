"""File names that clients choose for what they upload."""

import re
from pathlib import Path, PurePosixPath
from typing import Final

from gateway.errors import ApiError
from gateway.http.validation import quoted

_MAX_COMPONENT_BYTES: Final = 255
_MAX_NAME_BYTES: Final = 1024
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Devices on Windows, whatever their suffix; refused everywhere so that a directory can be moved there.
_DEVICE: Final = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE
)


def target_inside(directory: Path, name: str) -> Path:
    """Where a client's file called `name`, perhaps with sub-directories, is to be stored.

    It lies inside `directory`, symbolic links followed; its parent need not exist. Raises ApiError 400.
    """
    relative = _relative(name)
    root = directory.resolve()
    try:
        parent = (root / relative.parent).resolve()
        target = parent / relative.name
        blocked = target.is_dir() or target.is_symlink() or not _can_hold_files(parent)
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links
        raise _refused(name, "the file system cannot store it") from error
    if not parent.is_relative_to(root):
        raise _refused(name, "it leads outside the directory")
    if blocked:
        raise _refused(name, "something else has that name already")
    return target


def _relative(name: str) -> PurePosixPath:
    if not name or len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        raise _refused(name, f"it must have 1 to {_MAX_NAME_BYTES} bytes")
    if _CONTROL.search(name) or "\\" in name or ":" in name:
        raise _refused(name, "it must not contain control characters, backslashes or colons")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise _refused(name, "use a relative path without empty parts, '.' and '..'")
    if any(part.startswith(".") for part in parts):
        raise _refused(name, "no part of it may begin with a dot")
    if any(part != part.rstrip(". ") or _DEVICE.match(part) for part in parts):
        raise _refused(name, "no part of it may be a device name or end in a dot or a space")
    if any(len(part.encode("utf-8", "replace")) > _MAX_COMPONENT_BYTES for part in parts):
        raise _refused(name, f"no part of it may have more than {_MAX_COMPONENT_BYTES} bytes")
    return PurePosixPath(name)


def _can_hold_files(directory: Path) -> bool:
    """Whether `directory` is one or can be created: no file is in the way."""
    return next(p for p in (directory, *directory.parents) if p.exists()).is_dir()


def _refused(name: str, reason: str) -> ApiError:
    return ApiError(400, f"Invalid filename '{quoted(name, 120)}': {reason}.")
