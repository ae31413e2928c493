"""LoRA files: list, install, delete (api.md 6, lora.md 1.4 to 1.6)."""

import asyncio
import datetime
import logging
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.config import Config, Secrets
from gateway.errors import ApiError
from gateway.files.loras.check import problem_of
from gateway.files.loras.download import LoraDownloader, store
from gateway.files.loras.manifest import Entries, change_manifest, read_manifest
from gateway.files.loras.notes import Notes, notes_of
from gateway.files.loras.sources import LoraEndpoints, LoraSource, without_token
from gateway.http.client_names import target_inside
from gateway.http.uploads import not_stalled
from gateway.http.validation import quoted
from gateway.pipelines.load_params import LORA_SUFFIX
from streaming.engines.manifest import sha256

logger = logging.getLogger(__name__)

_PART: Final = ".part"


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One `.safetensors` file."""

    path: Path  # absolute
    relative: Path
    size_bytes: int
    read_only: bool  # in a shared directory

    @property
    def folder(self) -> str | None:
        folder = self.relative.parent.as_posix()
        return None if folder == "." else folder

    def describe(self, manifest: Entries) -> dict[str, Any]:
        """The object that clients know."""
        entry = {} if self.read_only else manifest.get(self.relative.as_posix(), {})
        if entry.get("size_bytes") != self.size_bytes:  # somebody replaced the file
            entry = {}
        problem = problem_of(self.path)
        notes = Notes() if problem else notes_of(self.path)
        return {
            "name": self.path.stem,
            "path": str(self.path),
            "size_mb": round(self.size_bytes / (1 << 20), 2),
            "folder": self.folder,
            "sha256": entry.get("sha256"),
            "provenance": entry.get("provenance"),
            "read_only": self.read_only,
            "problem": problem,
            "title": notes.title,
            "description": notes.description,
            "trigger_words": list(notes.trigger_words),
        }


class Loras:
    """The LoRA directory, and shared ones that are only read."""

    def __init__(
        self,
        directory: Path,
        in_use: Callable[[], Iterable[Path]],
        secrets: Secrets | None = None,
        endpoints: LoraEndpoints | None = None,
        shared: Sequence[Path] = (),
    ) -> None:
        """in_use: the files that are loaded or being loaded now."""
        self._directory = directory
        self._shared = shared
        self._in_use = in_use
        self._endpoints = endpoints or LoraEndpoints()
        self._downloader = LoraDownloader(self._endpoints, secrets or Secrets())
        self._installing: set[str] = set()  # file names; their unfinished files share a directory
        self._manifest = asyncio.Lock()

    @classmethod
    def from_config(cls, config: Config, in_use: Callable[[], Iterable[Path]]) -> "Loras":
        own, *shared = config.directories.lora_directories
        return cls(own, in_use, config.secrets, LoraEndpoints(huggingface=config.hf_endpoint), shared)

    @property
    def endpoints(self) -> LoraEndpoints:
        return self._endpoints

    async def entries(self) -> list[dict[str, Any]]:
        """All files, ordered by folder and name."""
        return await asyncio.to_thread(self._describe_all)

    async def install(self, url: str, filename: str | None) -> dict[str, Any]:
        """Download a file; the answer's body. Returns when the file is stored.

        Raises ApiError: 400 (URL, name, content), 409 (exists), 401, 403, 404 (from the service), 500, 507.
        """
        file, _ = await self._install(self._endpoints.source(url), filename)
        return await self._installed(file)

    async def upload(self, name: str, body: AsyncIterable[bytes], length: int | None) -> dict[str, Any]:
        """Store the file that a client sends; the answer's body, as that of `install`.

        name: with sub-directories, if wanted. length: of the body in bytes, where known. Raises ApiError: 400
        (name, content), 408 (stalled), 409 (exists), 500, 507.
        """

        async def write(part: Path) -> str:
            return await store(not_stalled(body), part, length or 0)

        file, _ = await self._put(name, write, "the client", {"source": "local"})
        return await self._installed(file)

    async def download(
        self, source: LoraSource, subfolder: str | None, expected_sha256: str | None
    ) -> dict[str, Any]:
        """Download a file into a sub-folder; the answer's body.

        Raises ApiError as `install` does, and 400 when the SHA-256 (hex) is not the expected one.
        """
        file, entry = await self._install(source, None, subfolder, expected_sha256)
        return {
            "filename": entry["filename"],
            "path": str(file.path),
            "sha256": entry["sha256"],
            "size_bytes": entry["size_bytes"],
        }

    async def set_provenance(self, name: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Note where a present file came from; its manifest entry.

        name: path relative to the LoRA directory. Raises ApiError 400 (another kind of file) and 404.
        """
        if not name.lower().endswith(LORA_SUFFIX):
            raise ApiError(400, f"'{quoted(name)}' is not a {LORA_SUFFIX} file.")
        files = await asyncio.to_thread(lambda: list(_scan(self._directory, set(), read_only=False)))
        file = next((f for f in files if f.relative.as_posix() == name), None)
        if file is None:
            raise ApiError(404, f"LoRA '{quoted(name)}' not found")
        url = provenance.get("url")
        clean = {**provenance, "url": None if url is None else without_token(url)}
        return await self._enter(file, await asyncio.to_thread(sha256, file.path), clean)

    async def _install(
        self,
        source: LoraSource,
        filename: str | None,
        subfolder: str | None = None,
        expected_sha256: str | None = None,
    ) -> tuple[LoraFile, dict[str, Any]]:
        """Download a file; the file and its manifest entry."""
        name = filename or source.file_name or await self._ask_for_name(source)
        name = f"{subfolder}/{name}" if subfolder else name

        async def write(part: Path) -> str:
            return await self._downloader.fetch(source, part)

        return await self._put(name, write, source.url.host, source.provenance(), expected_sha256)

    async def _put(
        self,
        name: str,
        write: Callable[[Path], Awaitable[str]],
        sender: str,
        provenance: Mapping[str, Any],
        expected_sha256: str | None = None,
    ) -> tuple[LoraFile, dict[str, Any]]:
        """Let `write` store a new file, which returns its SHA-256; the file and its manifest entry."""
        if not name.lower().endswith(LORA_SUFFIX):
            raise ApiError(
                400, f"'{quoted(name)}' is not a {LORA_SUFFIX} file; other formats are not accepted."
            )
        target = await asyncio.to_thread(target_inside, self._directory, name)
        exists = ApiError(409, f"'{target.name}' already exists; delete it first or choose another filename.")
        if target.name in self._installing:
            raise exists
        self._installing.add(target.name)
        try:
            if await asyncio.to_thread(target.exists):
                raise exists
            file, digest = await self._write(target, write, sender, expected_sha256)
        finally:
            self._installing.discard(target.name)
        logger.info("LoRA %s installed from %s", file.path, sender)
        return file, await self._enter(file, digest, provenance)

    async def _installed(self, file: LoraFile) -> dict[str, Any]:
        manifest = await asyncio.to_thread(read_manifest, self._directory)
        description = await asyncio.to_thread(file.describe, manifest)
        return {"message": f"Installed '{file.path.stem}'", "file": description}

    async def delete(self, name: str) -> dict[str, Any]:
        """Delete the file with that stem, at the top level or one directory below; the answer's body.

        Raises ApiError: 403 (shared), 404 (absent), 409 (loaded).
        """
        files = await asyncio.to_thread(lambda: list(self._scan()))
        matches = [f for f in files if name in (f.path.stem, f.path.name) and len(f.relative.parts) <= 2]
        if not matches:
            raise ApiError(404, f"LoRA '{quoted(name)}' not found")
        file = min(matches, key=lambda f: (f.read_only, len(f.relative.parts), f.relative))
        if file.read_only:
            raise ApiError(403, f"LoRA '{quoted(name)}' is in a shared directory and cannot be deleted here.")
        if file.path.resolve() in {path.resolve() for path in self._in_use()}:
            raise ApiError(409, f"LoRA '{quoted(name)}' is loaded; load the pipeline without it first.")
        await asyncio.to_thread(file.path.unlink, missing_ok=True)
        await self._note(lambda entries: entries.pop(file.relative.as_posix(), None))
        logger.info("LoRA %s deleted", file.path)
        return {"success": True, "message": f"Deleted '{file.path.stem}'"}

    async def _ask_for_name(self, source: LoraSource) -> str:
        name = await self._downloader.civitai_name(source) or await self._downloader.announced_name(source)
        if not name:
            raise ApiError(400, "The URL does not tell the name of the file: send 'filename' too.")
        return name

    async def _write(
        self,
        target: Path,
        write: Callable[[Path], Awaitable[str]],
        sender: str,
        expected_sha256: str | None,
    ) -> tuple[LoraFile, str]:
        """Store as another file and, when it is a good one, move it to `target`; it, and its SHA-256."""
        part = self._directory / f"{target.name}{_PART}"
        try:
            await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True)
            await asyncio.to_thread(part.unlink, missing_ok=True)  # of a server that was killed
            digest = await write(part)
            if expected_sha256 is not None and digest != expected_sha256.lower():
                raise ApiError(400, f"The file's SHA-256 is {digest}, not the expected one; it was not kept.")
            problem = await asyncio.to_thread(problem_of, part)
            if problem is not None:
                raise ApiError(400, f"What {sender} sent cannot be used: {problem}.")
            size_bytes = (await asyncio.to_thread(part.stat)).st_size
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
            await asyncio.to_thread(part.replace, target)
        except OSError as error:
            logger.error("Cannot store %s", target, exc_info=error)
            raise ApiError(500, f"The server cannot store '{target.name}': {error.strerror}.") from error
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        relative = target.relative_to(self._directory.resolve())
        return LoraFile(self._directory / relative, relative, size_bytes, read_only=False), digest

    async def _enter(self, file: LoraFile, digest: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Put a file into the manifest; its entry."""
        entry = {
            "filename": file.path.name,
            "provenance": dict(provenance),
            "sha256": digest,
            "size_bytes": file.size_bytes,
            "added_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        await self._note(lambda entries: entries.update({file.relative.as_posix(): entry}))
        return entry

    async def _note(self, change: Callable[[Entries], object]) -> None:
        async with self._manifest:
            try:
                await asyncio.to_thread(change_manifest, self._directory, change)
            except OSError as error:  # the files themselves are as they should be
                logger.warning("The manifest in %s cannot be written: %s", self._directory, error)

    def _describe_all(self) -> list[dict[str, Any]]:
        files = sorted(self._scan(), key=lambda f: (f.folder or "", f.path.stem))
        manifest = read_manifest(self._directory)
        return [file.describe(manifest) for file in files]

    def _scan(self) -> Iterator[LoraFile]:
        visited: set[Path] = set()  # a shared directory may hold the own one, or another
        yield from _scan(self._directory, visited, read_only=False)
        for directory in self._shared:
            yield from _scan(directory, visited, read_only=True)


def _scan(directory: Path, visited: set[Path], *, read_only: bool) -> Iterator[LoraFile]:
    """Linked directories are followed; none is visited that is in `visited`, to which they are added."""
    for folder, folders, files in os.walk(directory, followlinks=True):
        place = Path(folder).resolve()
        if place in visited:
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(folder) / name
            if path.suffix.lower() == LORA_SUFFIX and not name.startswith("."):
                try:
                    size_bytes = path.stat().st_size
                except OSError:  # a broken link, or no permission
                    continue
                yield LoraFile(path, path.relative_to(directory), size_bytes, read_only)
