"""Names for files that every shell, environment variable and locale can carry.

Triton starts the process of each Python model with `bash -c` and puts paths into that line as they are, the
loader cuts LD_LIBRARY_PATH at `:` and `;`, and the interpreter in a model's process takes names for ASCII. A
space or an apostrophe in a path would be a load that never ends. So what has such a name is reached through a
symbolic link that has none.
"""

import re
import shutil
import tempfile
from pathlib import Path

from streaming.errors import WanstreamError

_PLAIN = re.compile(r"[A-Za-z0-9_./+@-]+")
_LONGEST = 1024  # bytes; Triton appends names of models and files
_LONGEST_TEMPORARY = 64  # what is made below it may be a socket, whose path has 107 bytes at most
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


def is_plain(path: Path) -> bool:
    """Whether a path means itself wherever Triton puts it."""
    return _PLAIN.fullmatch(str(path)) is not None and len(str(path)) <= _LONGEST


def temporary_directories() -> list[Path]:
    """Where directories of links may be, the preferred place first."""
    named = Path(tempfile.gettempdir())
    usable = [named] if is_plain(named) and len(str(named)) <= _LONGEST_TEMPORARY else []
    return list(dict.fromkeys([*usable, *map(Path, _TEMPORARY)]))


class PlainPaths:
    """A new directory with a plain name, for links to files whose names are not; `with` removes it."""

    def __init__(self, prefix: str) -> None:
        """prefix: of its name. Raises WanstreamError when there is no place for it."""
        self.directory = _new_directory(prefix)
        self._links: dict[Path, Path] = {}

    def __enter__(self) -> "PlainPaths":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def of(self, path: Path) -> Path:
        """A plain path to `path`, which is absolute: itself, or one through a link."""
        if is_plain(path):
            return path
        for directory, link in self._links.items():
            inside = path.relative_to(directory) if path.is_relative_to(directory) else None
            if inside is not None and is_plain(link / inside):
                return link / inside
        link = self.directory / f"link{len(self._links)}"
        link.symlink_to(path)
        self._links[path] = link
        return link


def _new_directory(prefix: str) -> Path:
    problem: OSError | None = None
    for place in temporary_directories():
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        except OSError as error:
            problem = problem or error
    raise WanstreamError(
        f"There is no place for temporary files: {problem}. Free some space, or name a directory that can be "
        "written with TMPDIR."
    ) from problem
