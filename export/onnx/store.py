"""The directory of exported engines: what is in it is complete, and one export at a time writes to it.

    <root>/models/<engine>/    a Triton model: config.pbtxt, 1/engine.json, 1/model.onnx, 1/model.onnx.data
    <root>/sets/<set>/         which engines make up a pipeline (streaming/engines/engine_set.py)
    <root>/.partial/           what is being written; removed by the next export

A directory is written below `.partial` and moved to its place when it is finished, the manifest included.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from streaming.engines.engine_set import read_engine_set
from streaming.engines.manifest import MANIFEST, EngineManifest, check_files, engine_directory, read_manifest
from streaming.engines.records import EngineError
from streaming.errors import WanstreamError
from streaming.memory.host_memory import available_memory
from streaming.memory.units import in_units

_RESERVE_BYTES = 64 << 20


class StoreError(WanstreamError):
    """The directory of engines cannot be written."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What this machine has left, in bytes; None: not known."""

    disk: int
    memory: int | None

    @classmethod
    def now(cls, directory: Path) -> "Resources":
        """Of the file system of `directory`, which exists, and of the main memory."""
        return cls(shutil.disk_usage(directory).free, available_memory())

    def check(
        self, disk: int, memory: int, what: str = "The export", advice: str = "a smaller --precision"
    ) -> None:
        """Raises StoreError unless `what` can run, which needs so many bytes of each."""
        if disk + _RESERVE_BYTES > self.disk:
            raise StoreError(
                f"{what} needs {in_units(disk)} of disk; {in_units(self.disk)} are free. Free some, "
                "or choose another directory: --out DIRECTORY."
            )
        if self.memory is not None and memory > self.memory:
            raise StoreError(
                f"{what} needs about {in_units(memory)} of memory; {in_units(self.memory)} are free. "
                f"Stop other programs, use a larger machine, or {advice}."
            )


@dataclass(frozen=True, slots=True)
class EngineStore:
    """One directory of engines."""

    root: Path

    @property
    def models(self) -> Path:
        """A Triton model repository."""
        return self.root / "models"

    @property
    def sets(self) -> Path:
        return self.root / "sets"

    def engine(self, name: str) -> Path:
        """Directory of an engine's files."""
        return engine_directory(self.models, name)

    @contextmanager
    def writing(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the right to write, and clear away what a killed export left.

        wait: until another export that runs has ended

        Raises StoreError when another export runs, or when the directory cannot be written.
        """
        try:
            for directory in (self.root, self.models, self.sets):
                directory.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock", timeout=-1 if wait else 0)
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"Another export is writing to '{self.root}'. Wait until it has ended, or choose another "
                "directory: --out DIRECTORY."
            ) from error
        except OSError as error:
            raise StoreError(
                f"'{self.root}' cannot be written ({error}). Choose another directory: --out DIRECTORY."
            ) from error
        try:
            shutil.rmtree(self._partial, ignore_errors=True)
            yield
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
            lock.release()

    @contextmanager
    def replacing(self, target: Path) -> Iterator[Path]:
        """A new, empty directory that becomes `target` if the block ends well; otherwise nothing changes.

        Inside `writing` only. Raises StoreError when the disk is full or cannot be written.
        """
        # A worker of a killed export, in its last moments, must not meet the one that follows.
        partial = self._partial / f"{target.name}.{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            yield partial
            _flush(partial)
            if target.exists():
                target.rename(partial.with_name(f"{partial.name}.old"))
            partial.rename(target)
        except OSError as error:
            raise StoreError(
                f"'{target}' could not be written ({error}). Check the disk and run the command again: "
                "what is finished is kept."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(partial.with_name(f"{partial.name}.old"), ignore_errors=True)

    def write_file(self, target: Path, content: bytes) -> None:
        """Replace one file, or nothing. Inside `writing` only. Raises StoreError when the disk is full."""
        partial = self._partial / target.name
        try:
            self._partial.mkdir(exist_ok=True)
            partial.write_bytes(content)
            _flush(self._partial)
            partial.replace(target)
        except OSError as error:
            raise StoreError(
                f"'{target}' could not be written ({error}). Check the disk and run the command again: "
                "what is finished is kept."
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def prune(self) -> list[tuple[str, int]]:
        """Remove the engines that no set names; returns their names and sizes in bytes.

        Inside `writing` only. Raises StoreError, and removes nothing, when a set cannot be read: its engines
        may be needed.
        """
        try:
            sets = [read_engine_set(directory) for directory in self.sets.iterdir() if directory.is_dir()]
        except EngineError as error:
            raise StoreError(
                f"Nothing was removed, because it is not known what is needed: {error}"
            ) from error
        named = {name for engine_set in sets for name in engine_set.engines()}
        removed = []
        for directory in sorted(self.models.iterdir()):
            # What has no manifest is somebody else's model, and stays.
            if directory.name not in named and (self.engine(directory.name) / MANIFEST).is_file():
                size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
                self._remove(directory)
                removed.append((directory.name, size))
        return removed

    def find(self, name: str, fingerprint: str, *, hashes: bool = True) -> EngineManifest | None:
        """The manifest of an engine that is there, undamaged, and made from the same things; else None."""
        try:
            manifest = self.verified(name, hashes=hashes)
        except EngineError:
            return None
        return manifest if manifest.fingerprint == fingerprint else None

    def verified(self, name: str, *, hashes: bool = True) -> EngineManifest:
        """The manifest of engine `name`, its files compared. Raises EngineError that says what is wrong."""
        directory = self.engine(name)
        manifest = read_manifest(directory)
        check_files(directory, manifest, hashes=hashes)
        return manifest

    def _remove(self, directory: Path) -> None:
        """All of it, or nothing: half an engine would look damaged. Raises StoreError."""
        partial = self._partial / f"{directory.name}.removed"
        try:
            self._partial.mkdir(exist_ok=True)
            directory.rename(partial)
        except OSError as error:
            raise StoreError(f"'{directory}' cannot be removed ({error}).") from error
        shutil.rmtree(partial, ignore_errors=True)

    @property
    def _partial(self) -> Path:
        return self.root / ".partial"


def _flush(directory: Path) -> None:
    """To the disk, so that a crash of the machine cannot leave empty files under final names."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
