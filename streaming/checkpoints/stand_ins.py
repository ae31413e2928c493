"""Stand-ins: what is in the place of a large file when its download gave something else.

A link to a page instead of a file gives HTML, as does a site that wants a login; `git clone` without git-lfs
gives pointers of three lines; other formats come under a suffix that somebody changed.
"""

from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 512
_SPACE: Final = b"\xef\xbb\xbf \t\r\n"
_PAGE: Final = (
    "a web page (HTML): download the file itself, on huggingface.co from an address with '/resolve/', and "
    "log in or send a token where one is needed"
)
_POINTER: Final = (
    "a pointer of git-lfs, which names the file: run 'git lfs pull' where it was cloned, or download the file"
)
_STARTS: Final = (
    (
        (b"version https://git-lfs.github.com/", b"version https://hawser.github.com/", b"# xet version"),
        _POINTER,
    ),
    ((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--"), _PAGE),
    ((b"<?xml", b"<error"), "an XML document, perhaps an error message: download the file again"),
    ((b"gguf",), "a GGUF file: convert it, or download the safetensors form"),
)


def stand_in(path: Path) -> str | None:
    """What a file is that should hold weights, and what to do; None: nothing that is known here.

    Raises OSError.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    text = head.replace(b"\x00", b"") if head[:2] in (b"\xff\xfe", b"\xfe\xff") else head  # UTF-16
    text = text.lstrip(_SPACE + b"\xff\xfe").lower()
    return next((what for starts, what in _STARTS if text.startswith(starts)), None)
