"""Wheels of what is installed in the tests' environment: images are built from them without any download."""

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_OF_THE_INSTALLATION = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
BORROWED = (
    "torch",
    "sympy",
)  # 0.8 GB: containers see them in BORROWED_AT instead of having them in their image
BORROWED_AT = "/borrowed"


def closure(requirements: Iterable[str]) -> Iterator[metadata.Distribution]:
    """What these requirements mean in this environment, each distribution once."""
    seen: set[tuple[str, frozenset[str]]] = set()
    given: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        distribution = metadata.distribution(name)
        for text in distribution.requires or ():
            further = Requirement(text)
            marker = further.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(further)
        if name not in given:
            given.add(name)
            yield distribution


def repack(distribution: metadata.Distribution, directory: Path) -> Path:
    """The wheel that a distribution was installed from, but for programs that are no entry points."""
    tags = re.findall(r"^Tag: (.+)-(.+)-(.+)$", distribution.read_text("WHEEL") or "", re.M)
    name = canonicalize_name(distribution.name).replace("-", "_")
    joined = (".".join(dict.fromkeys(part)) for part in zip(*tags, strict=True))
    path = directory / f"{'-'.join((name, distribution.version, *joined))}.whl"
    borrowed = distribution.name in BORROWED
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as wheel:

        def add(name: str, content: bytes) -> None:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append((name, f"sha256={digest}", len(content)))
            wheel.writestr(name, content)

        for file in distribution.files or ():
            if _belongs(file) and (_is_information(file) or not borrowed):
                add(str(file), file.read_binary())
        if borrowed:
            add(f"borrowed_{name}.pth", BORROWED_AT.encode())
        (information,) = {top for row in record if (top := row[0].split("/")[0]).endswith(".dist-info")}
        text = io.StringIO()
        csv.writer(text).writerows([*record, (f"{information}/RECORD", "", "")])
        wheel.writestr(f"{information}/RECORD", text.getvalue())
    return path


def borrowed_directories() -> dict[Path, str]:
    """What containers need of this machine beside their image, and where."""
    found = {}
    for name in BORROWED:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if _belongs(file)}:
            path = Path(str(distribution.locate_file(top)))
            if path.is_dir() and not top.endswith(".dist-info"):
                found[path] = f"{BORROWED_AT}/{top}"
    return found


def _belongs(file: metadata.PackagePath) -> bool:
    return (
        ".." not in file.parts
        and file.suffix != ".pyc"
        and not (_is_information(file) and file.name in _OF_THE_INSTALLATION)
    )


def _is_information(file: metadata.PackagePath) -> bool:
    return file.parts[0].endswith(".dist-info")


def wheelhouse(directory: Path, requirements: Iterable[str]) -> Path:
    """A directory of wheels that satisfy the requirements."""
    directory.mkdir(parents=True)
    for distribution in closure(requirements):
        if not _is_editable(distribution):
            repack(distribution, directory)
    return directory


def _is_editable(distribution: metadata.Distribution) -> bool:
    return '"editable": true' in (distribution.read_text("direct_url.json") or "")
