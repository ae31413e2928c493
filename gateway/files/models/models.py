"""Model files: which are there, and downloading those that are not (api.md 5)."""

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from filelock import FileLock, Timeout

from gateway.config import Config
from gateway.errors import ApiError
from gateway.files.disk import room_bytes
from gateway.files.models.artifacts import (
    ARTIFACTS,
    MIRROR,
    PREPROCESSORS,
    UPSTREAM,
    Artifact,
    is_directory,
)
from gateway.files.models.hub import INCOMPLETE, Hub, HubError, HubFile, HubUnreachableError
from gateway.http.paths import PathNotAllowedError, resolve_inside
from gateway.http.validation import quoted
from gateway.waiting import end
from streaming.checkpoints.stand_ins import stand_in
from streaming.errors import WanstreamError
from streaming.specs import SPECS, PipelineSpec

logger = logging.getLogger(__name__)

OWNERS: Final = (UPSTREAM, MIRROR)

_MIB: Final = 1 << 20
_LOCK_NAME: Final = ".download.lock"
_LOCK_POLL_S: Final = 0.5


class DownloadError(WanstreamError):
    """A download that failed, and why."""


@dataclass(slots=True)
class Progress:
    """How far a download is. Bytes of complete files count, and of the current one what is stored."""

    repository: str | None = None  # the current one
    repository_bytes: int = 0
    repository_total: int = 0
    finished_bytes: int = 0  # of the repositories before the current one
    total_bytes: int = 0
    error: str | None = None

    def describe(self) -> dict[str, Any]:
        """The object that clients know."""
        done = self.finished_bytes + self.repository_bytes
        progress = {
            "is_downloading": self.error is None,
            "percentage": _percentage(self.repository_bytes, self.repository_total),
            "current_artifact": self.repository,
            "total_percentage": _percentage(done, self.total_bytes),
            "downloaded_mb": round(done / _MIB, 1),
            "total_mb": round(self.total_bytes / _MIB, 1),
            "stage": "download",
        }
        return progress if self.error is None else progress | {"error": self.error}


@dataclass(frozen=True, slots=True)
class DownloadSize:
    """Of a pipeline's files, in bytes; missing: what a download would still bring."""

    total_bytes: int
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be fetched of one repository, and where to; who else may have it."""

    artifact: Artifact
    repository: str
    files: list[tuple[HubFile, Path]]
    other_owners: Sequence[str]

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file, _ in self.files)


class Models:
    """The models directory and the downloads into it.

    One download runs at a time, since pipelines share files; the next ones wait. A second server or
    `download_models` on the same directory waits too.
    """

    def __init__(
        self,
        directory: Path,
        hub: Hub,
        engines_ready: Callable[[PipelineSpec], bool],
        owners: Sequence[str] = OWNERS,
    ) -> None:
        """owners: whose repositories are asked, in this order; `upstream` is whoever made them."""
        self._directory = directory
        self._hub = hub
        self._engines_ready = engines_ready
        self._owners = owners
        self._progress: dict[str, Progress] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._listed: dict[str, list[_Plan]] = {}  # what the hub has told, for those who only ask

    @classmethod
    def from_config(cls, config: Config, engines_ready: Callable[[PipelineSpec], bool]) -> "Models":
        token = config.secrets.hf_token or huggingface_hub.get_token()  # the hub client's stored login
        hub = Hub(config.hf_endpoint, token)
        return cls(config.directories.models, hub, engines_ready, config.model_owners)

    async def status(self, pipeline_id: str) -> dict[str, Any]:
        """Whether a pipeline's files are there, and how far its download is. Raises ApiError 404."""
        spec = _known(pipeline_id)
        progress = self._progress.get(pipeline_id)
        missing = await asyncio.to_thread(self.missing, pipeline_id)
        return {
            "downloaded": not missing and pipeline_id not in self._tasks,
            "progress": None if progress is None else progress.describe(),
            "engines_ready": self._engines_ready(spec),
            "missing": missing,
        }

    def missing(self, pipeline_id: str) -> list[str]:
        """Paths, relative to the models directory, of what is not there or not complete."""
        return [f"{artifact.repository}/{name}" for artifact, name in self._missing(pipeline_id)]

    def _missing(self, pipeline_id: str) -> list[tuple[Artifact, str]]:
        return [
            (artifact, name)
            for artifact in ARTIFACTS[pipeline_id]
            for name in artifact.files
            if not _is_present(self._directory / artifact.repository / name, name)
        ]

    async def size(self, pipeline_id: str) -> DownloadSize:
        """How much a download is. Raises ApiError 404, and DownloadError when the hub does not tell."""
        _known(pipeline_id)
        if pipeline_id not in self._listed:
            try:
                listings = [
                    self._plan(artifact, self._owners, patient=False) for artifact in ARTIFACTS[pipeline_id]
                ]
                self._listed[pipeline_id] = list(await asyncio.gather(*listings))
            except (HubError, HubUnreachableError) as error:
                raise DownloadError(str(error)) from error
        plans = self._listed[pipeline_id]
        missing = await asyncio.to_thread(_missing_bytes, plans)
        return DownloadSize(sum(plan.total_bytes for plan in plans), missing)

    def start(self, pipeline_id: str) -> None:
        """Begin a download in the background. Raises ApiError: 404 (unknown), 409 (it runs already)."""
        _known(pipeline_id)
        if pipeline_id in self._tasks:
            raise ApiError(409, f"Download already in progress for {pipeline_id}")
        self._progress.pop(pipeline_id, None)
        if not ARTIFACTS[pipeline_id]:
            return
        progress = self._progress[pipeline_id] = Progress()
        task = asyncio.create_task(self._run(pipeline_id, progress), name=f"download-{pipeline_id}")
        self._tasks[pipeline_id] = task

    def progress_of(self, pipeline_id: str) -> Progress | None:
        """Of the newest download; None: there is none, or it is complete."""
        return self._progress.get(pipeline_id)

    async def fetch(self, pipeline_id: str) -> None:
        """Start a download, or join the one that runs, and wait for its end.

        Raises DownloadError. When this is cancelled, a download that it has started is, too.
        """
        joined = pipeline_id in self._tasks
        if not joined:
            self.start(pipeline_id)
        task, progress = self._tasks.get(pipeline_id), self._progress.get(pipeline_id)
        if task is None or progress is None:
            return  # it has no files
        try:
            await asyncio.wait({task})
        finally:
            if not joined:
                await end(task)
        if progress.error is not None:
            raise DownloadError(progress.error)

    async def download(self, pipeline_id: str, progress: Progress) -> None:
        """Fetch what a pipeline's repositories, or a preprocessor's, hold of its files, unless it is here.

        Raises DownloadError.
        """
        try:
            async with self._turn, _exclusive(self._directory / _LOCK_NAME):
                wanted = (ARTIFACTS | PREPROCESSORS)[pipeline_id]
                plans = [await self._plan(artifact, self._owners) for artifact in wanted]
                await asyncio.to_thread(_require_space, plans, self._directory)
                await asyncio.to_thread(_mark_incomplete, plans)
                progress.total_bytes = sum(plan.total_bytes for plan in plans)
                for plan in plans:
                    progress.finished_bytes += progress.repository_bytes
                    await self._fetch_from_any(plan, progress)
        except HubError as error:
            raise DownloadError(str(error)) from error
        except HubUnreachableError as error:
            by_hand = await asyncio.to_thread(self._by_hand, pipeline_id)
            raise DownloadError(f"{error} {by_hand}") from error
        except OSError as error:
            raise DownloadError(_describe_os_error(error, self._directory)) from error

    async def close(self) -> None:
        """Cancel all downloads; what is stored of them is used by the next ones. Idempotent."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._hub.close()

    async def _run(self, pipeline_id: str, progress: Progress) -> None:
        logger.info("Downloading the models of %s", pipeline_id)
        try:
            await self.download(pipeline_id, progress)
            del self._progress[pipeline_id]
            logger.info("The models of %s are complete", pipeline_id)
        except asyncio.CancelledError:
            del self._progress[pipeline_id]
            raise
        except DownloadError as error:
            progress.error = str(error)
            logger.error("Download for %s failed: %s", pipeline_id, error)
        except Exception:  # task boundary: clients see that it failed, the trace is in the log
            progress.error = "Internal error, see the server's log."
            logger.exception("Download for %s failed", pipeline_id)
        finally:
            del self._tasks[pipeline_id]

    def _by_hand(self, pipeline_id: str) -> str:
        """What to do without a network: where each missing file is, and where it belongs."""
        lines = []
        for artifact, name in self._missing(pipeline_id):
            page = f"https://huggingface.co/{artifact.repository_id(self._owners[0])}"
            kind, rest = ("tree", "/ with all in it") if is_directory(name) else ("resolve", "")
            lines.append(f"{page}/{kind}/main/{name}{rest} to {artifact.repository}/{name}")
        return (
            "Check the network and HF_ENDPOINT and start the download again. Or fetch on another machine, "
            f"and copy into {self._directory}:\n" + "\n".join(lines)
        )

    async def _plan(self, artifact: Artifact, owners: Sequence[str], *, patient: bool = True) -> _Plan:
        """Find the artifact's files with the first owner that has them all. Raises HubError."""
        failures = []
        for number, owner in enumerate(owners, start=1):
            repository = artifact.repository_id(owner)
            try:
                files = await self._hub.files(repository, patient=patient)
                targets = self._targets(artifact, repository, files)
                return _Plan(artifact, repository, targets, owners[number:])
            except HubError as error:
                failures.append(str(error))
        raise HubError(" ".join(failures))

    def _targets(
        self, artifact: Artifact, repository: str, files: list[HubFile]
    ) -> list[tuple[HubFile, Path]]:
        wanted = [f for f in files if any(_matches(f.path, name) for name in artifact.files)]
        for name in artifact.files:
            if not any(_matches(file.path, name) for file in wanted):
                raise HubError(f"{repository}: there is no '{name}' in it.")
        directory = self._directory / artifact.repository
        try:
            return [(file, resolve_inside(directory, file.path)) for file in wanted]
        except PathNotAllowedError as error:
            raise HubError(f"{repository}: it holds a file with a path that is not allowed.") from error

    async def _fetch_from_any(self, plan: _Plan, progress: Progress) -> None:
        """Fetch a plan's files; where an owner lists files but does not give them, ask the next one."""
        try:
            await self._fetch(plan, progress)
        except HubError as error:
            if not plan.other_owners:
                raise
            logger.warning("%s Asking the next owner", error)
            try:
                other = await self._plan(plan.artifact, plan.other_owners)
                progress.total_bytes += other.total_bytes - plan.total_bytes
                await asyncio.to_thread(_mark_incomplete, [other])
                await self._fetch_from_any(other, progress)
            except HubError as other_error:
                raise HubError(f"{error} {other_error}") from error

    async def _fetch(self, plan: _Plan, progress: Progress) -> None:
        progress.repository, progress.repository_total = plan.repository, plan.total_bytes
        progress.repository_bytes = done = 0
        for file, target in plan.files:

            def on_bytes(stored: int, before: int = done) -> None:
                progress.repository_bytes = before + stored

            if not await asyncio.to_thread(_is_complete, file, target):
                await self._hub.fetch(file, target, on_bytes)
            done += file.size_bytes
            progress.repository_bytes = done


def _known(pipeline_id: str) -> PipelineSpec:
    spec = SPECS.get(pipeline_id)
    if spec is None:
        raise ApiError(404, f"Unknown pipeline: {quoted(pipeline_id)}. Known pipelines: {', '.join(SPECS)}.")
    return spec


def _percentage(done: int, total: int) -> float:
    return round(100.0 * done / total, 1) if total else 0.0


def _matches(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")


def _is_present(path: Path, name: str) -> bool:
    if not is_directory(name):
        return path.is_file() and path.stat().st_size > 0 and not _stands_in(path)
    files = [Path(folder) / file for folder, _, names in os.walk(path) for file in names]
    # Every file that a download still has to bring begins its life with that suffix.
    return bool(files) and not any(f.name.endswith(INCOMPLETE) or _stands_in(f) for f in files)


def _stands_in(path: Path) -> bool:
    """Whether a pointer or a web page is in the place of a file: a download mends that."""
    try:
        return stand_in(path) is not None
    except OSError:
        return False


def _is_complete(file: HubFile, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == file.size_bytes


def _part(target: Path) -> Path:
    return target.with_name(target.name + INCOMPLETE)


def _mark_incomplete(plans: Sequence[_Plan]) -> None:
    """Give every file that is to come its unfinished form, so that directories show what they lack."""
    for plan in plans:
        for file, target in plan.files:
            if _is_complete(file, target):
                _part(target).unlink(missing_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                _part(target).touch()


def _missing_bytes(plans: Sequence[_Plan]) -> int:
    """Of what is not complete, beyond its unfinished files."""
    return sum(
        file.size_bytes - (_part(target).stat().st_size if _part(target).is_file() else 0)
        for plan in plans
        for file, target in plan.files
        if not _is_complete(file, target)
    )


def _require_space(plans: Sequence[_Plan], directory: Path) -> None:
    needed = _missing_bytes(plans)
    room = room_bytes(directory)
    if needed and room < needed:
        raise DownloadError(
            f"{needed / 1e9:.1f} GB are to be downloaded, but {directory} has only "
            f"{max(0, room) / 1e9:.1f} GB left for files. Remove some, or set DAYDREAM_SCOPE_MODELS_DIR to a "
            "larger disk."
        )


def _describe_os_error(error: OSError, directory: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {directory} is full. Remove files and start the download again."
    return f"{error.filename or directory} cannot be written: {error.strerror or error}."


@contextlib.asynccontextmanager
async def _exclusive(path: Path) -> AsyncIterator[None]:
    """Hold a lock among all processes that use this directory."""
    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    while True:
        try:
            lock.acquire()
            break
        except Timeout:
            await asyncio.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        lock.release()
