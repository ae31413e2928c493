"""Paths that come from clients: only what lies inside a given directory is ever opened."""

from pathlib import Path

from streaming.errors import WanstreamError


class PathNotAllowedError(WanstreamError):
    """A client's path that leaves the directory, or that is no path at all."""


def resolve_inside(directory: Path, name: str) -> Path:
    """The file that `name` means, absolute or relative to `directory`, symbolic links followed.

    The file need not exist. Raises PathNotAllowedError unless it lies inside `directory`.
    """
    try:
        root = directory.resolve()
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, an embedded NUL
        raise PathNotAllowedError(f"'{name[:200]}' is not a usable path.") from error
    if path == root or not path.is_relative_to(root):
        raise PathNotAllowedError(f"'{name[:200]}' lies outside {directory}. Use a file inside it.")
    return path


def is_file(path: Path) -> bool:
    """Whether `path` is a file; false, too, for names that the file system cannot hold."""
    try:
        return path.is_file()
    except OSError:
        return False
