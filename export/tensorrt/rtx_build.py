"""Engines of a set compiled by TensorRT for RTX, for the GPU of this machine; it needs no container.

Order of writing: the compiled files, then their record in the engine's manifest. A set is served with them as
soon as all of its engines have one.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from export.onnx.store import EngineStore
from export.tensorrt import rtx_worker
from export.tensorrt.tensorrt_build import BuildError
from streaming.engines.engine_set import read_engine_set
from streaming.engines.manifest import MANIFEST, ONNX_FILE, EngineManifest, RtxBuild, file_info
from streaming.engines.records import EngineError
from streaming.engines.rtx import (
    COMPILED_FILE,
    PACKAGE,
    RtxVersions,
    check_compiled,
    compiled_directory,
    profile_options,
    target_of,
    versions_of,
)
from streaming.memory.machine import Machine

Say = Callable[[str], None]
_NODE: Final = "EPContext"


@dataclass(frozen=True, slots=True)
class RtxCompiler:
    """ONNX Runtime with the plug-in, in processes of their own.

    python: of the environment that has both
    """

    python: Path = Path(sys.executable)

    def versions(self) -> tuple[RtxVersions, str]:
        """Of plug-in and TensorRT for RTX, and of ONNX Runtime. Raises BuildError where they are not."""
        script = (
            "import importlib.metadata, importlib.util\n"
            f"print(importlib.util.find_spec('{PACKAGE}').origin)\n"
            "print(next(d.version for d in importlib.metadata.distributions() if d.metadata['Name'] in "
            "('onnxruntime', 'onnxruntime-gpu')))\n"
        )
        process = subprocess.run([self.python, "-c", script], capture_output=True, text=True)
        origin, _, onnxruntime = process.stdout.strip().partition("\n")
        versions = versions_of(Path(origin).parent) if process.returncode == 0 else None
        if versions is None:
            raise BuildError(
                f"TensorRT for RTX is not installed for {self.python}. With Python 3.11 or later: pip "
                "install 'wanstream[rtx]'; it brings NVIDIA's libraries, under their licence."
            )
        return versions, onnxruntime

    def compile(self, graph: Path, output: Path, options: Mapping[str, str]) -> str:
        """Write the compiled file, and the engine that it points at beside it; returns the compiler's log.

        Raises BuildError with the compiler's words.
        """
        chosen = [f"{name}={value}" for name, value in options.items()]
        command = [self.python, rtx_worker.__file__, graph, output, *chosen]
        process = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
        if process.returncode != 0:
            reason = process.stderr.strip().rpartition("\n")[2] or f"exit code {process.returncode}"
            raise RefusedError(f"TensorRT for RTX does not take '{graph}' ({reason}).", process.stderr)
        return process.stderr


class RefusedError(BuildError):
    """A graph that the compiler does not take. log: all that it said."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, slots=True)
class RtxSetBuild:
    """One run of `wanstream-build --with rtx`."""

    engine_set: str
    store: EngineStore
    say: Say
    compiler: RtxCompiler
    machine: Machine

    def run(self) -> None:
        """Compile what is not compiled for this GPU and these versions. Raises WanstreamError.

        Engines that were finished before stay.
        """
        target = self._target()
        versions, onnxruntime = self.compiler.versions()
        with self.store.writing():
            engines = read_engine_set(self.store.sets / self.engine_set)
            manifests = [self._portable(name) for name in engines.engines()]
            missing = [m for m in manifests if not self._is_current(m, target, versions)]
            if not missing:
                self.say(f"All {len(manifests)} engines are compiled for {target}.")
            for number, manifest in enumerate(missing, 1):
                self.say(f"[{number}/{len(missing)}] {manifest.name} ...")
                self._compile(manifest, target, versions, onnxruntime)
        self.say(f"Engine set '{self.engine_set}' is compiled for {target}, and served with it from now on.")

    def check(self) -> None:
        """Say of each engine whether it can be served here. Raises EngineError if one cannot."""
        target, (versions, _) = self._target(), self.compiler.versions()
        problems = []
        for name in read_engine_set(self.store.sets / self.engine_set).engines():
            try:
                manifest = self.store.verified(name, hashes=False)
                check_compiled(self.store.engine(name), manifest, target, versions, hashes=True)
            except EngineError as error:
                problems.append(str(error))
            else:
                self.say(f"{name}: what is compiled for {target} can be served here.")
        if problems:
            raise EngineError("\n".join(problems))

    def _target(self) -> str:
        """Raises BuildError where TensorRT for RTX has nothing to run on."""
        machine = self.machine
        if machine.compute_capability is None:
            raise BuildError(
                "There is no GPU here that the driver knows. Run this on the machine that serves: TensorRT "
                "for RTX compiles for its GPU."
            )
        target = target_of(machine.compute_capability)
        if target is None:
            raise BuildError(
                f"TensorRT for RTX is for GeForce and workstation cards of compute capability 8.6, 8.9, and "
                f"12.0 or more; {machine.gpu} has {machine.compute_capability}. Load with 'backend' pytorch, "
                "or build TensorRT plans: wanstream-build without --with."
            )
        return target

    def _portable(self, name: str) -> EngineManifest:
        """Raises EngineError for an engine that is damaged, or for the CPU."""
        manifest = self.store.verified(name)
        if manifest.form == "cpu":
            raise BuildError(
                f"Engine '{name}' is for ONNX Runtime on the CPU. Export the set again for GPUs: "
                "wanstream-export with --form portable."
            )
        return manifest

    def _is_current(self, manifest: EngineManifest, target: str, versions: RtxVersions) -> bool:
        try:
            check_compiled(self.store.engine(manifest.name), manifest, target, versions, hashes=True)
        except EngineError:
            return False
        return True

    def _compile(
        self, manifest: EngineManifest, target: str, versions: RtxVersions, onnxruntime: str
    ) -> None:
        directory = self.store.engine(manifest.name)
        place = compiled_directory(directory, target)
        place.parent.mkdir(exist_ok=True)
        with self.store.replacing(place) as partial:
            output = partial / COMPILED_FILE
            self.compiler.compile(directory / ONNX_FILE, output, profile_options(manifest))
            _check_whole(output, manifest)
            others = sorted(path for path in partial.iterdir() if path != output)
            files = tuple(map(file_info, (output, *others)))
        build = RtxBuild(
            target=target,
            files=files,
            plugin=versions.plugin,
            tensorrt_rtx=versions.tensorrt_rtx,
            onnxruntime=onnxruntime,
        )
        kept = tuple(other for other in manifest.rtx if other.target != target)
        record = manifest.model_copy(update={"rtx": (*kept, build)}).model_dump_json(indent=1)
        self.store.write_file(directory / MANIFEST, record.encode())


def _check_whole(compiled: Path, manifest: EngineManifest) -> None:
    """Raises BuildError where something of the graph would run on the CPU."""
    graph = onnx.load(str(compiled), load_external_data=False).graph
    left = sorted({node.op_type for node in graph.node if node.op_type != _NODE})
    if len(graph.node) != 1 or left:
        raise BuildError(
            f"TensorRT for RTX has not compiled engine '{manifest.name}' as a whole: {len(graph.node)} nodes "
            f"are left ({', '.join(left) or _NODE}). It is not used; load with 'backend' pytorch."
        )
