"""ONNX Runtime on a GPU, up to its border: what it is told, on which memory and stream it runs.

The double has the manners of the real one: a CUDA provider that cannot be loaded leaves the session on the
CPU with a warning alone, plug-ins are registered once, and a session takes one device of them.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from export.onnx.onnx_export import random_inputs
from export.onnx.store import EngineStore
from streaming.engines import ort, rtx
from streaming.engines.bound import BoundEngine, OrtPlace
from streaming.engines.engine import OrtEngine
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import ONNX_FILE, EngineManifest, read_manifest
from streaming.engines.ort import GpuOptions, GpuProviders, open_graph
from streaming.engines.records import EngineError
from streaming.errors import WanstreamError
from streaming.memory.machine import Machine
from streaming.network.inputs import TensorSpec

GPU = GpuOptions(0, 4096, Path("cache"), profiles=2)


class Session:
    """Of the double: what it was made with, and the calls in the order of the stream's."""

    def __init__(self, path: str, options: Any, providers: Any = ()) -> None:
        self.options, self.providers = options, [p if isinstance(p, tuple) else (p, {}) for p in providers]
        self.calls: list[Any] = []

    def get_providers(self) -> list[str]:
        loaded = [name for name, _ in self.providers if name not in FakeRuntime.broken]
        return loaded or [device.ep_name for device in self.options.devices]


class Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.devices: list[Any] = []
        self.chosen: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_provider_for_devices(self, devices: list[Any], chosen: dict[str, str]) -> None:
        if len(devices) != 1:
            raise RuntimeError("TensorRT for RTX takes one device")
        self.devices, self.chosen = devices, chosen


class FakeRuntime(ModuleType):
    SessionOptions, InferenceSession = Options, Session
    broken: tuple[str, ...] = ()

    def __init__(self, devices: int) -> None:
        super().__init__("onnxruntime")
        self.registered: list[str] = []
        self._devices = devices

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if name in self.registered:
            raise RuntimeError(f"library {name} is already registered")
        self.registered.append(name)

    def get_ep_devices(self) -> list[Any]:
        own = [SimpleNamespace(ep_name=name) for name in self.registered for _ in range(self._devices)]
        return [SimpleNamespace(ep_name="CPUExecutionProvider"), *own]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], FakeRuntime]:
    def installed(devices: int = 1) -> FakeRuntime:
        fake, plugin = FakeRuntime(devices), ModuleType(rtx.PACKAGE)
        plugin.get_ep_name = lambda: rtx.PROVIDER  # type: ignore[attr-defined]
        plugin.get_library_path = lambda: str(tmp_path / "plugin.so")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        monkeypatch.setitem(sys.modules, rtx.PACKAGE, plugin)
        ort.register_rtx.cache_clear()
        return fake

    yield installed
    ort.register_rtx.cache_clear()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / ONNX_FILE
    path.write_bytes(b"graph")
    return path


def test_cuda_gets_the_stream_and_a_silent_fall_to_the_cpu_is_an_error(
    runtime: Callable[..., FakeRuntime], graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime()

    session = open_graph(graph, 0, provider="cuda", gpu=GPU)

    name, chosen = session.providers[0]
    assert name == "CUDAExecutionProvider"
    assert (chosen["user_compute_stream"], chosen["device_id"]) == ("4096", "0")
    monkeypatch.setattr(FakeRuntime, "broken", ("CUDAExecutionProvider",))
    with pytest.raises(WanstreamError, match=r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'"):
        open_graph(graph, 0, provider="cuda", gpu=GPU)


def test_tensorrt_for_rtx_gets_stream_cache_and_profiles_and_nothing_falls_back(
    runtime: Callable[..., FakeRuntime], graph: Path, tmp_path: Path
) -> None:
    fake, cache = runtime(2), tmp_path / "cache"

    sessions = [open_graph(graph, 0, provider="rtx", gpu=GpuOptions(0, 4096, cache, n)) for n in (1, 2)]

    assert fake.registered == [rtx.PROVIDER]
    assert [session.options.chosen for session in sessions] == [
        {
            "has_user_compute_stream": "1",
            "user_compute_stream": "4096",
            "nv_runtime_cache_path": str(cache),
            "nv_persistent_context_memory": "1",
            "nv_multi_profile_enable": several,
        }
        for several in ("0", "1")
    ]
    assert all(s.options.entries["session.disable_cpu_ep_fallback"] == "1" for s in sessions)
    assert cache.is_dir()


def test_no_gpu_and_no_plugin_are_told_with_a_remedy(
    runtime: Callable[..., FakeRuntime], graph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime(0)
    gpu = GpuOptions(0, 1, tmp_path)
    with pytest.raises(WanstreamError, match="finds no GPU"):
        open_graph(graph, 0, provider="rtx", gpu=gpu)
    ort.register_rtx.cache_clear()
    monkeypatch.setitem(sys.modules, rtx.PACKAGE, None)
    with pytest.raises(WanstreamError, match=r"wanstream\[rtx\]"):
        open_graph(graph, 0, provider="rtx", gpu=gpu)


class Stream:
    """A CUDA stream that writes down what is queued, in one list for all."""

    cuda_stream = 4096

    def __init__(self, name: str, queued: list[str]) -> None:
        self.name, self.queued = name, queued

    def wait_stream(self, other: "Stream") -> None:
        self.queued.append(f"{self.name} waits for {other.name}")


def test_a_call_runs_between_what_pytorch_has_queued_and_what_it_queues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queued: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("pytorch", queued))
    place = OrtPlace("cuda", torch.device("cuda", 0), Stream("ours", queued))

    def fail() -> None:
        with place.after_and_before_others():
            queued.append("call")
            raise EngineError("it failed")

    with pytest.raises(EngineError):
        fail()

    assert queued == ["ours waits for pytorch", "call", "pytorch waits for ours"]


def inputs_of(manifest: EngineManifest, end: str) -> dict[str, Tensor]:
    profile = manifest.profiles[0] if manifest.profiles else {}
    sizes = {axis: getattr(found, end) for axis, found in profile.items()}
    specs = [TensorSpec(t.name, t.shape, integer=t.dtype == "int64") for t in manifest.inputs]
    return {t.name: v for t, v in zip(specs, random_inputs(specs, sizes), strict=True)}


@pytest.mark.parametrize("end", ["min", "opt"])
def test_bound_memory_gives_what_copies_give(exported_engines: tuple[Path, EngineSet], end: str) -> None:
    store = EngineStore(exported_engines[0] / "engines")
    for name in exported_engines[1].engines():
        manifest, path = read_manifest(store.engine(name)), store.engine(name) / ONNX_FILE
        inputs = inputs_of(manifest, end)
        bound, copied = BoundEngine(manifest, path, OrtPlace(), 1), OrtEngine(path, 1)

        results, expected = (engine.run(inputs, bound.outputs) for engine in (bound, copied))

        assert all(torch.equal(results[output], expected[output]) for output in bound.outputs), name


def test_inputs_of_other_shapes_are_refused_before_memory_is_bound(
    exported_engines: tuple[Path, EngineSet],
) -> None:
    store, name = EngineStore(exported_engines[0] / "engines"), exported_engines[1].transformer
    manifest = read_manifest(store.engine(name))
    engine = BoundEngine(manifest, store.engine(name) / ONNX_FILE, OrtPlace(), 1)
    inputs = inputs_of(manifest, "opt")

    for wrong in (inputs["tokens"][:, 1:], inputs["tokens"][0]):
        with pytest.raises(EngineError, match="was called with"):
            engine.run(inputs | {"tokens": wrong}, engine.outputs)


@pytest.mark.parametrize(
    ("capability", "choice", "expected"),
    [
        ("8.9", "auto", ("sm89", True, True)),
        ("8.9", "cuda", ("sm89", True, False)),
        ("12.0", "rtx", ("sm120", False, True)),
        ("9.0", "auto", (None, True, True)),
        (None, "auto", (None, False, False)),
        ("8.9", "cpu", (None, False, False)),
    ],
)
def test_what_a_machine_has(
    capability: str | None, choice: Any, expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "here", lambda *_: Machine(compute_capability=capability))
    monkeypatch.setattr(ort, "_is_installed", lambda name: name == "onnxruntime-gpu")
    versions = rtx.RtxVersions(plugin="0.5.0", tensorrt_rtx="1.7.1")
    monkeypatch.setattr(ort, "installed_versions", lambda: versions)

    found = GpuProviders.here(choice)

    assert (found.target, found.cuda, found.rtx is not None) == expected
