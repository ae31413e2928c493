"""Compiling exported engines with TensorRT for RTX, each in a process of its own: a crash is that graph's."""

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from filelock import FileLock

from export.tensorrt.rtx_build import RefusedError, RtxCompiler
from streaming.engines.manifest import ONNX_FILE, EngineManifest, engine_directory, read_manifest
from streaming.engines.rtx import profile_options

PYTHON = Path(sys.prefix) / "rtx" / "bin" / "python"  # scripts/setup.sh makes it
_SCRIPTS = Path(__file__).parent / "compiler"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FUSED = re.compile(r"Found (\S*softmax\S*) to be part of self-attention pattern")
_HARMLESS = ("has Int64 binding", "already exists with value")
ATTENTIONS = {"transformer": 2}  # by kind of engine, in every layer: to itself and to the prompt


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came of a graph.

    error       the compiler's words; empty: it was taken
    nodes       operators that are left in the compiled file
    left        initializers that are left in it
    engine_bytes   of the engine beside it
    warnings    of the compiler, without those that mean nothing
    attentions  softmaxes that it has found to be parts of attention
    """

    error: str
    nodes: tuple[str, ...] = ()
    left: int = 0
    engine_bytes: int = 0
    warnings: tuple[str, ...] = ()
    attentions: int = 0


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles files; the same graph with the same sizes once, whatever its weights.

    stand_ins: directory of the driver's
    """

    stand_ins: Path
    known: dict[str, Compiled] = field(default_factory=dict)

    @staticmethod
    def with_stand_ins(directory: Path) -> "Compiler":
        """Makes them where they are not there."""
        with FileLock(f"{directory}.lock"):
            if not directory.is_dir():
                partial = directory.with_suffix(".partial")
                partial.mkdir(exist_ok=True)
                subprocess.run([str(PYTHON), str(_SCRIPTS / "driver.py"), str(partial)], check=True)
                partial.rename(directory)
        return Compiler(directory)

    def problems(self, models: Path, names: Iterable[str], target: str) -> dict[str, list[str]]:
        """By engine of a model repository, what is wrong with it once compiled; none: nothing."""
        found = {}
        for name in names:
            directory = engine_directory(models, name)
            manifest = read_manifest(directory)
            path = directory / ONNX_FILE
            compiled = self.compile(path, target, profile_options(manifest))
            if wrong := problems_of(compiled, path, manifest):
                found[name] = wrong
        return found

    def compile(self, path: Path, target: str, options: Mapping[str, str]) -> Compiled:
        """target: sm89 and the like. options: of the plug-in."""
        key = sha256(repr((path.read_bytes(), target, sorted(options.items()))).encode()).hexdigest()
        if key not in self.known:
            self.known[key] = self._compile(path, target, options)
        return self.known[key]

    def _compile(self, path: Path, target: str, options: Mapping[str, str]) -> Compiled:
        with TemporaryDirectory() as work:
            output = Path(work, "compiled.onnx")
            try:
                log = RtxCompiler(self.python(target, Path(work))).compile(path, output, options)
            except RefusedError as error:
                return Compiled(" ".join([str(error), *_warnings(_COLOUR.sub("", error.log))]))
            return _read(output, _COLOUR.sub("", log))

    def python(self, target: str, directory: Path) -> Path:
        """One in whose ONNX Runtime a GPU of this kind can be compiled for; a file in `directory`."""
        path = directory / f"python_{target}"
        path.write_text(
            f"#!/bin/sh\nPYTHONPATH='{_SCRIPTS}' RTX_TEST_STAND_INS='{self.stand_ins}' "
            f"RTX_TEST_TARGET={target} "
            f"exec '{PYTHON}' \"$@\"\n"
        )
        path.chmod(0o700)
        return path


def problems_of(compiled: Compiled, path: Path, manifest: EngineManifest) -> list[str]:
    """What is wrong with a compiled engine, for people."""
    if compiled.error:
        return [compiled.error]
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    expected = sum(node.op_type == "Softmax" for node in nodes)
    if manifest.kind in ATTENTIONS:
        expected = ATTENTIONS[manifest.kind] * ((manifest.layers or 0) + (manifest.vace_blocks or 0))
    checks = {
        f"not one node, but {compiled.nodes}": compiled.nodes == ("EPContext",),
        f"{compiled.left} weights are left outside the engine": compiled.left == 0,
        "the engine is empty": compiled.engine_bytes > 0,
        f"the compiler says {compiled.warnings}": not compiled.warnings,
        f"{compiled.attentions} attentions are fused, not {expected}": compiled.attentions == expected,
    }
    return [problem for problem, is_right in checks.items() if not is_right]


def _read(path: Path, log: str) -> Compiled:
    graph = onnx.load(str(path), load_external_data=False).graph
    names = [a.s.decode() for n in graph.node for a in n.attribute if a.name == "ep_cache_context"]
    return Compiled(
        error="",
        nodes=tuple(node.op_type for node in graph.node),
        left=len(graph.initializer),
        engine_bytes=sum((path.parent / name).stat().st_size for name in names),
        warnings=tuple(dict.fromkeys(_warnings(log))),
        attentions=len(set(_FUSED.findall(log))),
    )


def _warnings(log: str) -> Iterable[str]:
    for line in log.splitlines():
        told = line.partition(" log] ")[2]  # TensorRT's own, with its own level
        serious = "WARNING]" in told or "ERROR]" in told if told else "[W:" in line or "[E:" in line
        if serious and not any(words in line for words in _HARMLESS):
            yield (told or line).partition("]")[2].strip()
