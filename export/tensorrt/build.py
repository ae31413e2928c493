"""Plans for all engines of a set: built, compared, recorded, and put in the place of ONNX Runtime.

Order of writing: the plan, then its record in the engine's manifest, then the set, which says what serves it.
Whatever stops a build, what a set is served with is complete.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from export.onnx.room import Sized, check_room, fits
from export.onnx.store import EngineStore, Resources
from export.tensorrt.engine_build import BuildPlan, build_plan, server_options, timing_cache
from export.tensorrt.tensorrt_build import (
    TOLERANCES,
    BuildError,
    build_with_tensorrt,
    check_tensorrt,
    compare_with_onnx_runtime,
    context_bytes,
    tensorrt_runner,
)
from streaming.engines.engine_set import SET, Variant, read_engine_set
from streaming.engines.manifest import (
    CPU_PRECISIONS,
    MANIFEST,
    PLAN_FILE,
    BuildOptions,
    DType,
    EngineManifest,
    FileInfo,
    TensorInfo,
    TensorRTBuild,
)
from streaming.engines.plans import check_plan
from streaming.engines.records import EngineError
from streaming.memory.machine import Machine
from streaming.memory.plan import MemoryPlan, memory_plan, read_manifests
from streaming.memory.units import in_units
from streaming.specs import SPECS

Say = Callable[[str], None]


class Builder(Protocol):
    """What needs a GPU."""

    def check(self) -> None:
        """Raises BuildError when plans cannot be built here."""

    def build(self, plan: BuildPlan) -> bytes:
        """The content of the plan. Raises BuildError."""

    def activation_bytes(self, content: bytes) -> int | None:
        """Device memory of an execution context of a plan; None: not known."""

    def runner(self, content: bytes) -> Any:
        """Polygraphy's runner of a plan, to compare it with its graph."""


class TensorRTBuilder:
    """The TensorRT of this machine."""

    def check(self) -> None:
        check_tensorrt()

    def build(self, plan: BuildPlan) -> bytes:
        return build_with_tensorrt(plan)

    def activation_bytes(self, content: bytes) -> int | None:
        return context_bytes(content)

    def runner(self, content: bytes) -> Any:
        return tensorrt_runner(content)


@dataclass(frozen=True, slots=True)
class Build:
    """One run of `wanstream-build`.

    gpus         numbers of the GPUs that serve; each gets an instance of every engine
    compare      run each new plan and its graph in ONNX Runtime on the same inputs
    gpu_memory   bytes of the GPU that serves; None: nobody can tell
    """

    engine_set: str
    store: EngineStore
    say: Say
    options: BuildOptions = field(default_factory=BuildOptions)
    gpus: tuple[int, ...] = (0,)
    compare: bool = True
    gpu_memory: int | None = None
    machine: Machine = field(default_factory=Machine.here)
    builder: Builder = field(default_factory=TensorRTBuilder)
    resources: Callable[[Path], Resources] = Resources.now

    def plans(self) -> list[BuildPlan]:
        """What is to be built, engine by engine. Raises EngineError."""
        return [self._plan(manifest) for manifest in self.manifests(hashes=False)]

    def manifests(self, *, hashes: bool) -> list[EngineManifest]:
        """Of the set's engines; their files are compared. Raises EngineError."""
        engines = read_engine_set(self.store.sets / self.engine_set)
        return [self.store.verified(name, hashes=hashes) for name in engines.engines()]

    def memory(self) -> list[MemoryPlan]:
        """What loading the set takes on a GPU, for each of its sizes. Raises EngineError."""
        engines = read_engine_set(self.store.sets / self.engine_set)
        loop = SPECS[engines.pipeline].loop
        assert loop is not None, "only pipelines with a loop have engines"
        manifests = read_manifests(self.store.models, engines.engines())
        return [memory_plan(engines, manifests, loop, (vae.height, vae.width)) for vae in engines.vae]

    def fits(self) -> Sized:
        """How a load of each size goes into the GPU that serves. Raises EngineError."""
        engines = read_engine_set(self.store.sets / self.engine_set)
        loop = SPECS[engines.pipeline].loop
        assert loop is not None, "only pipelines with a loop have engines"
        return fits(engines, read_manifests(self.store.models, engines.engines()), loop, self.gpu_memory)

    def run(self) -> None:
        """Build the plans that are not there for this machine and these options, and serve with them.

        Raises WanstreamError; plans that were finished before stay.
        """
        self.builder.check()
        with self.store.writing():
            manifests = self.manifests(hashes=True)
            missing = [manifest for manifest in manifests if not self._is_current(manifest)]
            self._check_gpu(manifests)
            if self.gpu_memory is not None:
                check_room(self.fits(), self.say)
            self._announce(manifests, missing)
            for number, manifest in enumerate(missing, 1):
                self.say(f"[{number}/{len(missing)}] {manifest.name} ...")
                self._build(manifest)
            self._configure("tensorrt")

    def record(self) -> None:
        """Take plans that `trtexec` has built here into service.

        Raises BuildError when one is absent or computes something else.
        """
        with self.store.writing():
            for manifest in self.manifests(hashes=True):
                path = self.store.engine(manifest.name) / PLAN_FILE
                if not path.is_file():
                    raise BuildError(
                        f"'{path}' does not exist. Run the commands of --trtexec, then this one again."
                    )
                record = self._record(manifest, path.read_bytes())
                self.store.write_file(path.with_name(MANIFEST), record)
            self._configure("tensorrt")

    def check(self) -> None:
        """Say of each plan whether it is whole and fits this machine. Raises EngineError if one does not."""
        problems = []
        for manifest in self.manifests(hashes=False):
            try:
                check_plan(self.store.engine(manifest.name), manifest, self.machine, hashes=True)
            except EngineError as error:
                problems.append(str(error))
            else:
                self.say(f"{manifest.name}: the plan can be served here.")
        if problems:
            raise EngineError("\n".join(problems))

    def serve_with(self, variant: Variant) -> None:
        """Write it into the set. Raises EngineError if a plan is absent, stale or foreign."""
        with self.store.writing():
            self._configure(variant)

    def _configure(self, variant: Variant) -> None:
        """Not into the engines: other sets share them."""
        if variant == "tensorrt":
            for manifest in self.manifests(hashes=False):
                check_plan(self.store.engine(manifest.name), manifest, self.machine)
        path = self.store.sets / self.engine_set / SET
        engines = read_engine_set(path.parent).model_copy(update={"serve_with": variant, "gpus": self.gpus})
        self.store.write_file(path, engines.model_dump_json(indent=1).encode())
        self._write_server_options()
        self.say(f"Engine set '{self.engine_set}' is served by {NAMES[variant]} from its next load on.")

    def _write_server_options(self) -> None:
        """For all sets that plans serve: one Triton serves them."""
        pools: dict[int, int] = {}
        version_compatible = False
        for directory in sorted(self.store.sets.iterdir()):
            other = replace(self, engine_set=directory.name)
            try:
                engines = read_engine_set(directory)
                if engines.serve_with != "tensorrt":
                    continue
                pool = max(memory.pool for memory in other.memory())
                plans = [manifest.tensorrt for manifest in other.manifests(hashes=False)]
            except EngineError:  # of another release, say; nobody asked for it now
                continue
            pools |= {gpu: max(pool, pools.get(gpu, 0)) for gpu in engines.gpus}
            version_compatible |= any(plan and plan.options.version_compatible for plan in plans)
        options = server_options(pools, version_compatible=version_compatible)
        self.store.write_file(
            self.store.root / SERVER_OPTIONS, "".join(f"{option}\n" for option in options).encode()
        )

    def _check_gpu(self, manifests: list[EngineManifest]) -> None:
        """Raises BuildError for a precision that this GPU does not have."""
        here = self.machine.compute_capability
        for manifest in manifests:
            least = self._plan(manifest).least_compute_capability
            if here is not None and least is not None and _numbers(here) < _numbers(least):
                raise BuildError(
                    f"Engine '{manifest.name}' is {manifest.precision}, which needs a GPU of compute "
                    f"capability {least} or more; {self.machine.gpu} has {here}. Export with another "
                    "--precision."
                )

    def _announce(self, manifests: list[EngineManifest], missing: list[EngineManifest]) -> None:
        if not missing:
            self.say(f"All {len(manifests)} plans are there, for this machine and these options.")
            return
        compared = [m for m in missing if self._is_compared(m)]
        disk = sum(m.bytes for m in missing) + max(map(_reference_bytes, compared), default=0)
        largest = max(missing, key=lambda m: m.bytes)
        memory = max(3 * largest.bytes, max(map(_comparison_bytes, compared), default=0))
        self.say(
            f"{len(missing)} of {len(manifests)} plans to build for {self.machine.gpu} with TensorRT "
            f"{self.machine.tensorrt}: about {in_units(disk)} of disk, {in_units(memory)} of memory."
        )
        self.resources(self.store.root).check(
            disk, memory, f"The build of engine '{largest.name}'", "export the set with a smaller --precision"
        )

    def _is_compared(self, manifest: EngineManifest) -> bool:
        """Whether a new plan is compared with its graph; one for which this machine is too small is not."""
        free = self.resources(self.store.root).memory
        return self.compare and (free is None or _comparison_bytes(manifest) <= free)

    def _is_current(self, manifest: EngineManifest) -> bool:
        if manifest.tensorrt is None or manifest.tensorrt.options != self.options:
            return False
        try:
            check_plan(self.store.engine(manifest.name), manifest, self.machine, hashes=True)
        except EngineError:
            return False
        return True

    def _build(self, manifest: EngineManifest) -> None:
        directory = self.store.engine(manifest.name)
        timing_cache(self.store.root, self.machine).parent.mkdir(exist_ok=True)
        content = self.builder.build(self._plan(manifest))
        record = self._record(manifest, content)
        self.store.write_file(directory / PLAN_FILE, content)
        self.store.write_file(directory / MANIFEST, record)

    def _plan(self, manifest: EngineManifest) -> BuildPlan:
        if manifest.form == "cpu":
            raise BuildError(
                f"Engine '{manifest.name}' is for ONNX Runtime on the CPU. "
                "Export the set again for TensorRT: wanstream-export with --form portable."
            )
        directory, cache = self.store.engine(manifest.name), timing_cache(self.store.root, self.machine)
        return build_plan(directory, manifest, cache, self.options)

    def _parity(self, manifest: EngineManifest, content: bytes) -> float:
        """Raises BuildError when the plan computes something else than its graph."""
        plan, allowed = self._plan(manifest), TOLERANCES[manifest.precision]
        with TemporaryDirectory(prefix="reference-", dir=self.store.root) as work:
            worst = compare_with_onnx_runtime(
                self.builder.runner(content), plan, manifest.precision, random_feeds(manifest), Path(work)
            )
        if not worst <= allowed:
            raise BuildError(
                f"The plan of engine '{manifest.name}' does not compute what its graph does: it differs by "
                f"{worst:.2g} of the largest element, and {allowed:g} is allowed. It is not used. Try "
                "another --level, or --no-compare at your own risk."
            )
        self.say(f"{manifest.name} differs from ONNX Runtime by at most {worst:.2g} of the largest element.")
        return worst

    def _compared(self, manifest: EngineManifest, content: bytes) -> float | None:
        """How far plan and graph differ; None where this machine is too small to tell."""
        if self._is_compared(manifest):
            return self._parity(manifest, content)
        self.say(
            f"{manifest.name} is not compared with ONNX Runtime: that takes "
            f"{in_units(_comparison_bytes(manifest))} of memory, which are not free here."
        )
        return None

    def _record(self, manifest: EngineManifest, content: bytes) -> bytes:
        """The manifest with what is known about the plan of this content. Raises BuildError."""
        machine = self.machine
        if None in (machine.gpu, machine.compute_capability, machine.driver, machine.tensorrt):
            raise BuildError(
                "The GPU, its driver or the version of TensorRT is not known here, so the plan could not be "
                "checked before it is loaded. Run this where plans are built, with a working driver."
            )
        build = TensorRTBuild(
            engine_set=self.engine_set,
            plan=FileInfo(file=PLAN_FILE, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
            version=str(machine.tensorrt),
            gpu=str(machine.gpu),
            compute_capability=str(machine.compute_capability),
            driver=str(machine.driver),
            options=self.options,
            parity=self._compared(manifest, content) if self.compare else None,
            activation_bytes=self.builder.activation_bytes(content),
        )
        return manifest.model_copy(update={"tensorrt": build}).model_dump_json(indent=1).encode()


SERVER_OPTIONS: Final = "server_options"  # in the engines' directory; serve-triton reads it
_TYPES: Final[dict[DType, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
NAMES: dict[Variant, str] = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime on the CPU"}


def _reference_bytes(manifest: EngineManifest) -> int:
    """Of the float32 graph that stands in where ONNX Runtime cannot run the engine's own."""
    return 0 if manifest.precision in CPU_PRECISIONS else 2 * manifest.bytes


def _comparison_bytes(manifest: EngineManifest) -> int:
    """Memory in which a plan and its graph are run."""
    return 3 * manifest.bytes + _reference_bytes(manifest)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def random_feeds(manifest: EngineManifest) -> list[dict[str, Tensor]]:
    """Inputs of the usual call of each profile: normal numbers, and zeros and ones for integers."""
    random = torch.Generator().manual_seed(0)

    def feed(tensor: TensorInfo, sizes: Mapping[str, int]) -> Tensor:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        noise = torch.randn(shape, generator=random)
        return (noise > 0).to(torch.int64) if tensor.dtype == "int64" else noise.to(_TYPES[tensor.dtype])

    calls = [{name: axis.opt for name, axis in profile.items()} for profile in manifest.profiles] or [{}]
    return [{tensor.name: feed(tensor, sizes) for tensor in manifest.inputs} for sizes in calls]
