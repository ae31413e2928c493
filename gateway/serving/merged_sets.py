"""Engine sets with LoRA files merged into their weights: made when a load asks for them, kept for the next.

Engines that Triton runs are files, so another set of files is needed. It shares with the set that it is made
from whatever LoRA files do not change. Making it is an export of the weights, and a build where that set has
plans, in processes of their own; so what runs goes on meanwhile, and nothing half done is ever found.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from gateway.serving.adapters import COPY_HASH
from gateway.serving.commands import BUILD, EXPORT, run_command
from gateway.serving.engine_sets import EngineSets, FoundSet, missing_packages
from gateway.serving.interface import ServingError, StageCallback
from streaming.engines.demo import DEMO_MODELS
from streaming.engines.engine_set import SET, EngineSet, MergedLora, merged_loras
from streaming.engines.load_plan import PlannedAdapter
from streaming.engines.manifest import sha256
from streaming.engines.records import EngineError
from streaming.specs import SPECS

logger = logging.getLogger(__name__)

INSTEAD: Final = "Or load with merge_mode runtime_peft, or with 'backend' pytorch."
_USED: Final = "used"  # in a set's directory: its time of change is that of the last load
_STEP: Final = re.compile(r"\[(\d+)/(\d+)\]")
_COPY: Final = re.compile(rf"^[0-9a-f]{{{COPY_HASH}}}-")
_PACKAGES: Final = ("torch", "onnx", "onnxscript")
_LAST_LINES: Final = 5


def loras_of(adapters: Sequence[PlannedAdapter]) -> tuple[MergedLora, ...]:
    """What a set has to have in its weights. Raises ServingError when a file is gone."""
    try:
        return merged_loras((adapter.path, adapter.scale) for adapter in adapters)
    except OSError as error:
        raise ServingError(f"A LoRA file cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class MergedSet:
    """One that is there, for people. last_used: by a load"""

    name: str
    pipeline_id: str
    loras: tuple[MergedLora, ...]
    size_bytes: int
    last_used: datetime

    def describe(self, in_use: str | None) -> dict[str, Any]:
        """For clients. in_use: name of the set that is loaded"""
        return {
            "name": self.name,
            "pipeline_id": self.pipeline_id,
            "loras": [
                {"file": _COPY.sub("", lora.file), "sha256": lora.sha256, "scale": lora.scale}
                for lora in self.loras
            ],
            "size_bytes": self.size_bytes,
            "last_used": self.last_used.isoformat(),
            "in_use": self.name == in_use,
        }


@dataclass(frozen=True, slots=True)
class MergedSets:
    """Those below one directory of engines. limit: of their number; who is not used longest has to go."""

    sets: EngineSets
    limit: int

    def found(self) -> list[MergedSet]:
        """All of them, the one that was used last first."""
        found = [self._described(merged) for merged in self.sets.merged()]
        return sorted(found, key=lambda merged: merged.last_used, reverse=True)

    def find(self, base: FoundSet, loras: Sequence[MergedLora]) -> FoundSet | None:
        """The set of the same weights with these files merged in, ready to serve."""
        wanted = _without_files(loras)
        for merged in self.sets.merged():
            if _without_files(merged.content.loras) == wanted and self._is_of(merged.content, base.content):
                return merged
        return None

    def note_use(self, merged: FoundSet) -> None:
        """It was loaded."""
        with contextlib.suppress(OSError):  # a directory that is only read: nothing is removed there, either
            (merged.directory / _USED).touch()

    def evict(self, keep: Collection[str]) -> None:
        """Remove those that are too many, but none of these names. Raises ServingError."""
        others = [merged.name for merged in self.found() if merged.name not in keep]
        room = max(0, self.limit - len(keep))
        if others[room:]:
            self.remove(others[room:])

    def remove(self, names: Sequence[str]) -> int:
        """Delete sets, and the engines that no other set has; returns their size in bytes.

        What is half removed is never found: a set goes before its engines. Raises ServingError.
        """
        with self._writing():
            before = sum(merged.size_bytes for merged in self.found() if merged.name in names)
            for merged in [m for m in self.sets.merged() if m.content.name in names]:
                engines = self._own_engines(merged)
                try:
                    for directory in (merged.directory, *(self.sets.models / name for name in engines)):
                        self._remove(directory)
                except OSError as error:
                    raise ServingError(f"'{merged.directory}' cannot be removed: {error}") from error
                logger.info("Removed the merged engine set %s", merged.content.name)
        return before

    def _remove(self, directory: Path) -> None:
        partial = self.sets.root / ".partial" / f"{directory.name}.{os.getpid()}.removed"
        partial.parent.mkdir(exist_ok=True)
        if directory.exists():
            directory.rename(partial)
        shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The lock of exports: none must count on an engine that goes. Raises ServingError."""
        try:
            with FileLock(self.sets.root / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise ServingError(
                "An export or a build is writing to the directory of engines. Wait until it has ended."
            ) from error

    def _is_of(self, merged: EngineSet, base: EngineSet) -> bool:
        """Whether a merged set is the other, but for its files, and runs where that does."""
        same: dict[str, Any] = {"name": base.name, "loras": (), "transformer": base.transformer}
        same |= {"text_kv": base.text_kv, "gpus": base.gpus, "note": base.note, "examples": base.examples}
        if merged.branch is not None and base.branch is not None:
            same["branch"] = base.branch
        if merged.model_copy(update=same) != base:
            return False
        try:
            theirs, ours = (self.sets.manifest(engines.transformer) for engines in (merged, base))
        except EngineError:
            return False
        added = {lora.sha256 for lora in merged.loras}
        return [s.sha256 for s in theirs.source_checkpoints if s.sha256 not in added] == [
            s.sha256 for s in ours.source_checkpoints
        ]

    def _own_engines(self, merged: FoundSet) -> list[str]:
        others = (s for s in self.sets.all() if s.directory != merged.directory)
        shared = {name for other in others for name in other.content.engines()}
        return [name for name in merged.content.engines() if name not in shared]

    def _described(self, merged: FoundSet) -> MergedSet:
        directories = [self.sets.models / name for name in self._own_engines(merged)]
        size = sum(_size(path) for directory in directories for path in directory.rglob("*"))
        return MergedSet(
            merged.content.name,
            merged.content.pipeline,
            merged.content.loras,
            size,
            _last_used(merged.directory),
        )


@dataclass(frozen=True, slots=True)
class SetMerger:
    """Makes merged sets.

    home, models    directories: of the demonstration's weights, and of others
    has_tensorrt    its builder is in this Python environment
    export, build   commands, without their arguments
    """

    merged: MergedSets
    home: Path
    models: Path
    has_tensorrt: bool
    export: Sequence[str] = EXPORT
    build: Sequence[str] = BUILD

    def require_tools(self, base: FoundSet) -> None:
        """Raises ServingError, with what to do, when this machine cannot make a set from that one."""
        missing = missing_packages(_PACKAGES)
        if missing:
            raise ServingError(
                "LoRA files can be merged into engines that Triton runs where these are exported, not here: "
                f"{', '.join(missing)} is not installed. Run there: {self._by_hand(base)}. {INSTEAD}"
            )
        if base.content.serve_with == "tensorrt" and not self.has_tensorrt:
            raise ServingError(
                "LoRA files can be merged into TensorRT plans where these are built, not here: TensorRT's "
                f"builder is not in this Python environment. Run there: {self._by_hand(base)}. {INSTEAD}"
            )

    async def make(
        self,
        base: FoundSet,
        adapters: Sequence[PlannedAdapter],
        on_stage: StageCallback,
        in_use: Callable[[], str | None],
    ) -> None:
        """Export the set with these files, build its plans, and remove what is too much then.

        adapters: files that nobody changes. in_use: name of the set that is loaded. Raises ServingError;
        what is complete is kept, so that it can go on there. May be cancelled.
        """
        self.require_tools(base)
        on_stage("Merging LoRA files into the engines...")
        said = await self._run([*self.export, *self._export_arguments(base, adapters)], "export", on_stage)
        name = next((found[1] for line in said if (found := re.search(r"Engine set '([^']+)'", line))), None)
        if base.content.serve_with == "tensorrt" and name is not None:
            await self._run([*self.build, name, *self._build_arguments(base)], "build", on_stage)
        merged = self.merged.find(base, loras_of(adapters))
        if merged is None:
            raise ServingError(
                f"The engines '{base.content.name}' were exported from other weights than those that are "
                f"here, or by another version of wanstream: run wanstream-export {base.content.pipeline} "
                f"again. {INSTEAD}"
            )
        self.merged.note_use(merged)
        used = in_use()
        with contextlib.suppress(ServingError):  # somebody exports; the next load removes what is too much
            self.merged.evict({merged.content.name, *([] if used is None else [used])})

    async def _run(self, command: Sequence[str], step: str, on_stage: StageCallback) -> list[str]:
        said: list[str] = []

        def follow(line: str) -> None:
            logger.info("Merge, %s: %s", step, line)
            said.append(line)
            if counted := _STEP.match(line):
                on_stage(f"Merging LoRA files into the engines ({step}): {counted[1]} of {counted[2]}...")

        if await run_command(command, self.merged.sets.root, follow) != 0:
            last = " ".join(said[-_LAST_LINES:]).removeprefix("Error: ")
            raise ServingError(f"The LoRA files could not be merged: the {step} has failed: {last} {INSTEAD}")
        return said

    def _export_arguments(self, base: FoundSet, adapters: Sequence[PlannedAdapter]) -> list[str]:
        """Of the command that made a set, and the files."""
        engines, loop = base.content, SPECS[base.content.pipeline].loop
        assert loop is not None, "only pipelines with a loop have engines"
        form = self.merged.sets.manifest(engines.transformer).form
        sizes = ",".join(f"{vae.height}x{vae.width}" for vae in engines.vae)
        arguments = [engines.pipeline, "--size", sizes, "--vae-type", engines.vae_type]
        arguments += ["--precision", engines.precision, "--form", form, "--wait"]
        arguments += ["--window", str(engines.window)] * (engines.window != loop.local_attn_size)
        arguments += ["--no-padding-keys"] * (engines.padding_keys != loop.padding_keys)
        arguments += ["--vace"] * (engines.branch is not None) + ["--adapters"] * engines.adapters
        weights = self.home / DEMO_MODELS if engines.demo else self.models
        arguments += ["--demo"] * engines.demo + [
            "--models",
            str(weights),
            "--out",
            str(self.merged.sets.root),
        ]
        loras = sorted(adapters, key=lambda adapter: (sha256(adapter.path), adapter.scale))
        return arguments + [f"--lora={adapter.path}={adapter.scale!r}" for adapter in loras]

    def _build_arguments(self, base: FoundSet) -> list[str]:
        """As the plans of a set were built."""
        build = self.merged.sets.manifest(base.content.transformer).tensorrt
        arguments = ["--out", str(self.merged.sets.root)]
        for gpu in base.content.gpus:
            arguments += ["--gpu", str(gpu)]
        if build is None:
            return arguments
        options = build.options
        arguments += ["--level", str(options.level), "--workspace", str(options.workspace_bytes >> 30)]
        arguments += ["--refittable"] * options.refittable
        arguments += ["--version-compatible"] * options.version_compatible
        return [*arguments, "--hardware-compatibility", options.hardware_compatibility]

    def _by_hand(self, base: FoundSet) -> str:
        engines = base.content
        command = f"wanstream-export {engines.pipeline} --precision {engines.precision} --lora FILE=SCALE"
        built = engines.serve_with == "tensorrt"
        return f"{command}, then wanstream-build of the set that it names" if built else command


def _without_files(loras: Sequence[MergedLora]) -> list[tuple[str, float]]:
    return [(lora.sha256, lora.scale) for lora in loras]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # removed meanwhile
        return 0


def _last_used(directory: Path) -> datetime:
    for path in (directory / _USED, directory / SET):
        with contextlib.suppress(OSError):
            return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    return datetime.fromtimestamp(0, timezone.utc)
